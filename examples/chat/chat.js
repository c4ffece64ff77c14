// The chat page: one connection, kept by client.js. Whatever comes from others is shown by textContent, never as HTML.

import { connect } from "./client.js";

const $ = (id) => document.getElementById(id);
const MOST_UNCONFIRMED = 100;

let name = "";
let room = "";
let connection = null; // null while the entrance is shown
let connected = false; // the server has let us in the room, and the connection has not been lost since
let timer = 0; // of the countdown to the next attempt
let typedAt = -Infinity; // when the server was last told that we are typing
let atEnd = true; // the newest message is in view
const unconfirmed = new Map(); // id -> what we said and has not come back yet
const shown = new Set(); // ids of the messages that are shown
const people = new Set();
const changes = new Map(); // name -> whether somebody is here, as told since we joined
const typists = new Map(); // name -> timer

// ---- The connection -------------------------------------------------------------------------------------------------

function begin() {
  connection = connect(`rooms/${encodeURIComponent(room)}`, {
    // A page can send no headers with a WebSocket: what tells who it is goes among the subprotocols.
    protocols: ["chat", `base64url.bearer.authorization.k8s.io.${base64url(name)}`],
    queue: 0, // what we say waits in `unconfirmed`
    onJoined: joined,
    onMessage: said,
    onPresence: presence,
    onLost: missing,
    onFrame: (frame) => on[frame.type]?.(frame),
    onState: changed,
  });
}

function base64url(text) {
  const bytes = String.fromCharCode(...new TextEncoder().encode(text));
  return btoa(bytes).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

function changed(state, { reason, delay }) {
  clearInterval(timer);
  if (state === "connecting") show("connecting", "Connecting…");
  if (state === "waiting" || state === "closed") {
    if (connected) notice("Connection lost.");
    disconnected();
  }
  if (state === "closed") show("closed", reason || "The connection has ended.");
  if (state === "waiting") {
    show("waiting", "No connection. Trying again");
    const due = performance.now() + delay;
    const tick = () => {
      const seconds = Math.ceil((due - performance.now()) / 1000);
      $("countdown").textContent = `in\u00a0${Math.max(seconds, 1)}\u00a0s`;
    };
    timer = setInterval(tick, 200);
    tick();
  }
}

function disconnected() {
  connected = false;
  people.clear();
  changes.clear();
  for (const user of [...typists.keys()]) stopped(user);
  showPeople();
}

// What we have missed comes next, or what was said last.
function joined({ recovered, reason }) {
  if (recovered !== undefined) notice("You are back.");
  if (recovered === false) missing({ reason });
  connected = true;
  sessionStorage.setItem("joined", "yes");
  show("connected", "Connected");
  // What has not come back may have arrived all the same. Then it comes twice, and is shown once.
  for (const [id, { text }] of unconfirmed) connection.send({ type: "say", id, text });
}

function missing({ count }) {
  notice(count ? `${count} messages are missing here.` : "Messages may be missing here.").classList.add("trouble");
}

// Who is here is told once, and may have been looked up before a change that we know of already.
function presence({ joined, left }) {
  for (const user of left) {
    if (user === name) continue; // this page is here, whatever has become of another connection
    changes.set(user, false);
    people.delete(user);
    stopped(user);
    notice(who(user), " left");
  }
  for (const { key: user } of joined) {
    changes.set(user, true);
    people.add(user);
    if (user !== name) notice(who(user), " joined");
  }
  showPeople();
}

// What the server sends beside, by its type.
const on = {
  here({ users }) {
    for (const user of users) if (changes.get(user) !== false) people.add(user);
    showPeople();
    if (!$("messages").childElementCount) notice("You joined ", who(`#${room}`), people.size > 1 ? "" : ", and nobody else is here yet");
  },
  typing({ user }) {
    if (user === name) return;
    clearTimeout(typists.get(user));
    typists.set(user, setTimeout(() => stopped(user), 4000));
    showTypists();
  },
  error({ detail }) {
    const [[id, refused] = []] = unconfirmed;
    if (refused) {
      refused.element.remove();
      unconfirmed.delete(id);
      $("text").value ||= refused.text;
    }
    showSend();
    notice(`The server refused your message: ${detail}`).classList.add("trouble");
  },
};

function say(text) {
  const id = Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  const element = bubble(name, text, new Date());
  element.classList.add("unconfirmed");
  unconfirmed.set(id, { text, element });
  add(element);
  if (connected) connection.send({ type: "say", id, text });
}

function said({ user, text, id, at }) {
  if (id && shown.has(id)) return;
  if (id) shown.add(id);
  if (unconfirmed.has(id)) {
    unconfirmed.get(id).element.remove();
    unconfirmed.delete(id);
    showSend();
  }
  stopped(user);
  const message = bubble(user, text, new Date(at));
  message.dataset.id = id;
  add(message);
  if (document.hidden) document.title = `● ${room} · Chat`;
}

// ---- What is seen ---------------------------------------------------------------------------------------------------

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children); // strings become text
  return made;
}

const who = (user) => element("bdi", "", user); // bdi: its direction of writing stays its own

function colour(target, user) {
  let hash = 7;
  for (const char of user) hash = (hash * 31 + char.codePointAt(0)) % 100003;
  target.style.setProperty("--hue", (hash * 137.5) % 360);
  return target;
}

function avatar(user) {
  const initials = user.match(/(?<![\p{L}\p{N}])[\p{L}\p{N}]/gu) ?? [...user];
  const made = colour(element("span", "avatar", initials.slice(0, 2).join("").toUpperCase()), user);
  made.ariaHidden = "true";
  return made;
}

function show(state, text) {
  $("status").dataset.state = state;
  $("status-text").textContent = text;
  $("countdown").textContent = "";
  $("retry").hidden = state !== "waiting" && state !== "closed";
  $("text").placeholder = state === "connected" ? `Message #${room}` : "Sent once you are connected";
  showSend();
}

function showSend() {
  $("send").disabled = unconfirmed.size >= MOST_UNCONFIRMED || !$("text").value.trim();
}

function showPeople() {
  const sorted = [...people].sort((a, b) => (b === name) - (a === name) || a.localeCompare(b, undefined, { numeric: true }));
  $("people").replaceChildren(...sorted.map((user) => {
    const row = element("li", "", avatar(user), who(user));
    if (user === name) row.append(element("span", "you", "you"));
    return row;
  }));
  $("count").textContent = connected ? people.size : "–";
}

function stopped(user) {
  clearTimeout(typists.get(user));
  typists.delete(user);
  showTypists();
}

function showTypists() {
  const users = [...typists.keys()];
  const many = users.length > 2;
  $("typing").replaceChildren();
  if (!users.length) return;
  const names = many ? ["Several people"] : users.flatMap((user, at) => (at ? [" and ", who(user)] : [who(user)]));
  $("typing").append(...names, users.length > 1 ? " are typing…" : " is typing…");
}

function notice(...parts) {
  return add(element("p", "notice", ...parts));
}

function bubble(user, text, at) {
  const time = element("time", "", at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }));
  time.dateTime = at.toISOString();
  time.title = at.toLocaleString();
  const header = colour(element("div", "who", who(user), time), user);
  const body = element("div", "text", text);
  body.dir = "auto";
  const message = element("div", "message", avatar(user), header, body);
  message.dataset.user = user;
  message.dataset.at = at.getTime();
  message.classList.toggle("own", user === name);
  return message;
}

// What has not come back yet stays below what has.
function add(child) {
  const list = $("messages");
  const last = child.classList.contains("unconfirmed") ? null : list.querySelector(".unconfirmed");
  list.insertBefore(child, last);
  const { user, at } = child.dataset;
  const before = child.previousElementSibling?.dataset;
  child.classList.toggle("more", Boolean(user) && before?.user === user && at - before.at < 180_000);
  while (list.childElementCount > 700) {
    shown.delete(list.firstElementChild.dataset.id);
    list.firstElementChild.remove();
  }
  if (atEnd || child.classList.contains("own")) scrollToEnd();
  else $("newer").hidden = false;
  return child;
}

function scrollToEnd() {
  $("messages").scrollTop = $("messages").scrollHeight;
}

// ---- Coming and going -----------------------------------------------------------------------------------------------

function enter() {
  sessionStorage.removeItem("joined");
  $("chat").hidden = true;
  $("entrance").hidden = false;
  fill();
  document.title = "Chat";
  $("name").focus();
  $("name").select();
}

function fill() {
  $("name").value = name || suggestion();
  $("room").value = room;
}

function join() {
  sessionStorage.setItem("name", name);
  const address = new URL(location.href);
  address.search = new URLSearchParams({ room });
  history.replaceState(null, "", address);
  $("another").href = address;
  $("entrance").hidden = true;
  $("chat").hidden = false;
  $("title").textContent = room;
  document.title = `${room} · Chat`;
  $("messages").replaceChildren();
  shown.clear();
  unconfirmed.clear();
  $("text").focus();
  begin();
}

function suggestion() {
  const pick = (words) => words[Math.floor(Math.random() * words.length)];
  return `${pick(["Amber", "Brave", "Calm", "Clever", "Coral", "Gentle", "Golden", "Merry", "Quiet", "Swift"])} ${
    pick(["Badger", "Crane", "Falcon", "Fox", "Heron", "Lynx", "Otter", "Owl", "Panda", "Wren"])}`;
}

$("join").addEventListener("submit", (submit) => {
  submit.preventDefault();
  name = $("name").value = $("name").value.replace(/[\s\p{Cc}]+/gu, " ").trim();
  room = $("room").value = $("room").value.trim().replace(/\s+/g, "-").toLowerCase();
  if (!$("join").reportValidity()) return; // what is left of them will not do
  join();
});

$("leave").addEventListener("click", () => {
  connection.close();
  disconnected();
  enter();
});

$("retry").addEventListener("click", () => connection.retry());

$("composer").addEventListener("submit", (submit) => {
  submit.preventDefault();
  const text = $("text").value.trim();
  if (!text || unconfirmed.size >= MOST_UNCONFIRMED) return;
  say(text);
  $("text").value = "";
  typedAt = -Infinity;
  showSend();
});

$("text").addEventListener("input", () => {
  showSend();
  if (connected && $("text").value && performance.now() - typedAt > 2500) {
    typedAt = performance.now();
    connection.send({ type: "typing" });
  }
});

$("text").addEventListener("keydown", (key) => {
  if (key.key === "Enter" && !key.shiftKey && !key.isComposing) {
    key.preventDefault();
    $("composer").requestSubmit();
  }
});

$("messages").addEventListener("scroll", ({ target }) => {
  atEnd = target.scrollHeight - target.scrollTop - target.clientHeight < 60;
  if (atEnd) $("newer").hidden = true;
});
$("newer").addEventListener("click", () => {
  scrollToEnd();
  $("text").focus();
});
new ResizeObserver(() => {
  if (atEnd) scrollToEnd(); // a keyboard on the screen must not hide the newest message
}).observe($("messages"));

document.addEventListener("visibilitychange", () => {
  if (!document.hidden && room) document.title = `${room} · Chat`;
});

name = sessionStorage.getItem("name") ?? "";
room = new URLSearchParams(location.search).get("room") ?? "lobby";
fill();
if (name && sessionStorage.getItem("joined") && $("join").checkValidity()) join(); // the page was loaded again
else enter();
