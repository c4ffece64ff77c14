"""How one value is read off a connection: from path, query string, headers, cookies or body, converted by msgspec."""

import typing
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from .components import near_components
from .connection import Connection
from .converters import Converter
from .errors import MessageError, ParameterError, ParameterProblem, SignatureError
from .http import Request
from .messages import decoder_for, split_path, unknown_type
from .params import REQUIRED, Marker
from .signature import EMPTY, Parameter, name_of

Read = Callable[[Any], Any]
"""Reads one argument off a connection; raises ParameterError."""

_info = msgspec.inspect
_SCALARS = (
    _info.AnyType, _info.NoneType, _info.BoolType, _info.IntType, _info.FloatType, _info.StrType, _info.DecimalType,
    _info.UUIDType, _info.DateTimeType, _info.DateType, _info.TimeType, _info.TimeDeltaType, _info.EnumType,
    _info.LiteralType,
)  # fmt: skip
_COLLECTIONS = (_info.ListType, _info.SetType, _info.FrozenSetType, _info.VarTupleType)
# What the values of the typed converters become by msgspec's rules.
_FITS: Mapping[Any, tuple[Any, ...]] = {
    int: (_info.IntType, _info.FloatType, _info.DecimalType),
    float: (_info.FloatType, _info.DecimalType),
}
_PLAIN_SCALARS = tuple(kind for kind in _SCALARS if kind not in (_info.AnyType, _info.EnumType, _info.LiteralType))


def _invalid(place: str, name: str, message: str) -> ParameterError:
    return ParameterError([ParameterProblem(place, name, message)])


def path_reader(parameter: Parameter, name: str, converter: Converter[Any]) -> Read:
    """A value from the path. Raises SignatureError if the converter can never give one of its type."""
    produces = getattr(converter, "produces", None)
    if parameter.type in (EMPTY, Any, produces) or produces is None:
        return lambda connection: connection.path_params[name]
    kind = _kind_of(parameter)
    if produces is not str:
        info = _info.type_info(parameter.bare)
        fits = _FITS.get(produces, (type(_info.type_info(produces)),))
        if isinstance(info, _PLAIN_SCALARS) and not isinstance(info, fits):
            raise SignatureError(
                f"parameter {parameter.name!r} is annotated {name_of(parameter.type)}, but its converter in the path "
                f"gives {name_of(produces)}",
                f"Annotate it with {name_of(produces)}, or use another converter.",
            )
    if kind != "one":
        raise _unfillable(parameter, "the path")
    convert = _convert_to(parameter.type, "path", name)
    return lambda connection: convert(connection.path_params[name])


def value_reader(parameter: Parameter, place: str) -> Read:
    """Reads a value, or all values of a name, from query, headers or cookies."""
    name = parameter.wire_name()
    kind = _kind_of(parameter)
    if kind == "struct":
        raise _unfillable(parameter, f"a {place}")
    fetch = _fetcher(place, name, many=kind == "many")
    convert = None if parameter.type in (str, Any, EMPTY) else _convert_to(parameter.type, place, name)
    default = parameter.default_value()

    def read(connection: Connection) -> Any:
        value = fetch(connection)
        if value is None:
            if default is None:
                raise _invalid(place, name, "is missing")
            return default()
        return value if convert is None else convert(value)

    return read


def _fetcher(place: str, name: str, *, many: bool) -> Callable[[Connection], Any]:
    if place == "query":
        if many:
            return lambda connection: connection.query_params.getlist(name) or None
        return lambda connection: connection.query_params.get(name)
    if place == "header":
        if many:
            return lambda connection: connection.headers.getlist(name) or None
        return lambda connection: connection.headers.get(name)
    if many:
        return lambda connection: [connection.cookies[name]] if name in connection.cookies else None
    return lambda connection: connection.cookies.get(name)


def struct_reader(parameter: Parameter) -> Read:
    """Reads each field of a Struct from the query string, so that every wrong field is told."""
    cls: Any = parameter.bare
    fields = [(field.name, value_reader(_field_parameter(field), "query")) for field in msgspec.structs.fields(cls)]
    names = {field.encode_name for field in msgspec.structs.fields(cls)}
    forbids = (typing.get_origin(cls) or cls).__struct_config__.forbid_unknown_fields

    def read(connection: Connection) -> Any:
        values = {}
        problems = []
        for name, read_field in fields:
            try:
                values[name] = read_field(connection)
            except ParameterError as error:
                problems += error.errors
        if forbids:
            unknown = [key for key in connection.query_params if key not in names]
            problems += [ParameterProblem("query", key, "is unknown") for key in unknown]
        if problems:
            raise ParameterError(problems)
        try:
            return cls(**values)
        except (ValueError, TypeError) as error:  # from __post_init__, whose texts are written for this
            raise _invalid("query", "", str(error)) from None

    return read


def _field_parameter(field: msgspec.structs.FieldInfo) -> Parameter:
    marker = Marker("query", alias=field.encode_name)
    if field.default_factory is not msgspec.NODEFAULT:
        marker = Marker("query", alias=field.encode_name, default_factory=field.default_factory)
    default = REQUIRED if field.default is msgspec.NODEFAULT else field.default
    return Parameter(field.name, field.type, default, marker)


def body_reader(parameter: Parameter) -> Read:
    """The body of a request, decoded from JSON. Raises SignatureError if msgspec does not know the type."""
    declared = Any if parameter.type is EMPTY else parameter.type
    check_decodable(declared, f"parameter {parameter.name!r} takes a body")
    decode = decoder_for(declared)
    default = parameter.default_value()

    def read(request: Request) -> Any:
        data = request.loaded_body
        if not data:
            if default is None:
                raise _invalid("body", "", "is missing")
            return default()
        try:
            return decode({"bytes": data})
        except MessageError as error:
            raise _invalid(
                "body", error.path or "", _hide_value(error.detail.replace("the message is", "is"))
            ) from None

    return read


def check_decodable(declared: Any, what: str) -> None:
    """Refuse a declaration that msgspec cannot decode.

    Raises:
        SignatureError: It cannot.
    """
    try:
        unknown = unknown_type(declared)
        decoder_for(declared)
    except (TypeError, NameError) as error:
        raise SignatureError(f"{what} that cannot be decoded", f"{error}.") from None
    if unknown is not None:
        raise SignatureError(
            f"{what} of type {name_of(unknown)!r}, which msgspec does not know",
            "Use msgspec.Struct, dataclasses, TypedDict, NamedTuple or builtin types.",
        )


def _kind_of(parameter: Parameter) -> str:
    """Whether a value is made of one text ("one") or of several ("many"), or is a "struct"."""
    if parameter.type is EMPTY:
        return "one"
    try:
        kind = _kind_of_info(_info.type_info(parameter.type))
    except TypeError as error:
        raise SignatureError(f"parameter {parameter.name!r} has a type that msgspec refuses", f"{error}.") from None
    if kind is None:
        raise _unfillable(parameter, "text")
    return kind


def _kind_of_info(info: Any) -> str | None:
    if isinstance(info, _SCALARS):
        return "one"
    if isinstance(info, _COLLECTIONS):
        return "many" if _kind_of_info(info.item_type) == "one" else None
    if isinstance(info, _info.StructType):
        return "struct"
    if isinstance(info, _info.UnionType):
        kinds = {_kind_of_info(member) for member in info.types if not isinstance(member, _info.NoneType)}
        return kinds.pop() if len(kinds) == 1 else None
    return None


def _unfillable(parameter: Parameter, source: str) -> SignatureError:
    name = name_of(parameter.bare)
    module = getattr(parameter.bare, "__module__", "")
    if name in {"WebSocket", "Request"}:
        return SignatureError(
            f"parameter {parameter.name!r} is annotated with the {name} of {module}",
            f"Import it from asgiws: from asgiws import {name}.",
        )
    return SignatureError(
        f"parameter {parameter.name!r} of type {name} cannot be made from {source}",
        "A value is a str, int, float, bool, Enum, Literal, UUID, datetime, date or Decimal, one of these or None, "
        "or a list of these; a Struct is filled by Query() or, for HTTP, from the body; a service is a class with "
        f"@component above it.{near_components(parameter.bare)}",
    )


def _convert_to(annotation: Any, place: str, name: str) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        try:
            return msgspec.convert(value, annotation, strict=False)
        except msgspec.ValidationError as error:
            raise _invalid(place, name, _expectation(str(error), annotation)) from None

    return convert


def _expectation(text: str, annotation: Any) -> str:
    """What was expected. Never what was found: it may be a secret."""
    detail, path = split_path(text)
    at = f" at {path}" if path else ""
    detail = detail.partition(", got ")[0]
    if detail.startswith("invalid enum value"):
        detail = f"expected {_choices(annotation)}"
    return f"{_hide_value(detail)}{at}"


def _hide_value(detail: str) -> str:
    if detail.startswith("unknown "):  # an unknown tag, and then the known ones
        return detail.partition(", ")[2]
    return "is invalid" if detail.startswith(("invalid value", "invalid enum value")) else detail


def _choices(annotation: Any) -> str:
    """The values of the Enums and Literals in an annotation."""
    values: list[Any] = []
    pending = [_info.type_info(annotation)]
    while pending:
        info = pending.pop()
        if isinstance(info, _info.EnumType):
            values += [member.value for member in info.cls]
        elif isinstance(info, _info.LiteralType):
            values += info.values
        else:
            pending += getattr(info, "types", ()) or ([info.item_type] if hasattr(info, "item_type") else [])
    return "one of " + ", ".join(map(repr, values))
