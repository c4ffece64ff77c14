// Keeps a page connected to topics, and loses and doubles nothing on the way.
//
//     import { connect } from "./client.js";
//     const connection = connect("rooms/lobby", { onMessage: (data) => console.log(data) });
//
// The server joins the topics with `envelope=True`. Each message brings its position: an opaque string, of which the last
// one is kept for each topic and sent back when the connection has been lost, in the query string: `topic` and `since`,
// once for each topic, in the same order; `since` is empty where nothing was seen yet. The server then sends what was
// missed, or says in the frame `joined`, with `recovered: false` and a `reason`, that it cannot.

const LEAST = 500; // milliseconds before the first new attempt; it doubles with each one
const MOST = 30_000; // and is never longer
const PATIENCE = 10_000; // milliseconds that a handshake may take

const FINAL = new Set([1000, 1003, 1007, 1008, 1009, 1010]); // the end, a refusal, or a message that was wrong
const PASSING = new Set([4408, 4425, 4429]); // as the HTTP statuses 408, 425, 429: too late, too early, too many

// Whether a close code says that another attempt would end in the same way. 4400 to 4499 are HTTP's 400 to 499; some
// servers can only send 4001 to 4015 in place of 1001 to 1015.
export function isFinal(code) {
  if (code > 4000 && code < 4016) code -= 3000;
  return FINAL.has(code) || (code >= 4400 && code < 4500 && !PASSING.has(code));
}

// Connect, and connect again whenever the connection is lost.
//
//   url          of the WebSocket; relative to the page, http or ws. A function (may be async) is asked at each attempt.
//   topics       names of topics to send with the first attempt already; for an endpoint that joins what it is asked to.
//   since        positions that an earlier connection left behind, by topic: see `positions`.
//   protocols    the subprotocols to offer, or a function (may be async) that gives them at each attempt.
//   queue        how many messages `send` keeps while there is no connection.
//   final        tells of a close code whether to give up; as `isFinal` does, if left out.
//   onMessage    (data, {topic, position}): a publication. What was bytes on the server is a Uint8Array.
//   onJoined     ({topic, position, recovered, reason}): before the messages of a topic, at each connection.
//                `recovered: false`: what was missed cannot be had any more, load your state anew.
//   onLost       ({topic, count, reason}): messages are missing in this place; `count` is null if it is not known.
//   onPresence   ({topic, joined: [{key, meta}], left: [key]}): who came and who went.
//   onFrame      (frame): whatever else the server sends: parsed, if it is JSON; an ArrayBuffer, if it is binary.
//   onState      (state, detail): "connecting"; "open"; "waiting" with {code, reason, delay}, the milliseconds until
//                the next attempt; "closed" with {code, reason}, and there will be no attempt.
//
// Gives an object:
//   send(data)   sends a string or bytes, anything else as JSON; true if it is on its way or in the queue. Nothing tells
//                whether it arrived: if you have to know, have the server publish it and look for it to come back.
//   retry()      connects now, if it waits or was closed.
//   close(code, reason)  ends it; `retry` begins anew.
//   state        as onState told it last.
//   positions    the last position of each topic, to be kept for `since`.
export function connect(url, options = {}) {
  const { topics = [], since = {}, protocols = [], queue = 100, final = isFinal } = options;
  const { onMessage, onJoined, onLost, onPresence, onFrame, onState } = options;
  const base = globalThis.location?.href;
  const positions = new Map(Object.entries(since));
  const waiting = []; // messages to send once there is a connection
  let state = "connecting";
  let socket = null; // the WebSocket in use: what any other one still says does not count
  let turn = 0; // of the attempt in use
  let attempts = 0; // since the server last said something
  let timer = 0; // until the next attempt

  if (typeof url !== "function") new URL(url, base); // an address that cannot be one is an error at once
  queueMicrotask(() => turn || open()); // the caller has its object before it is told anything

  function tell(next, detail = {}) {
    state = next;
    const listen = state === "closed" ? "removeEventListener" : "addEventListener"; // adding twice is adding once
    globalThis[listen]?.("online", open);
    globalThis[listen]?.("offline", offline);
    globalThis[listen]?.("pageshow", hurry);
    globalThis.document?.[listen]("visibilitychange", hurry);
    onState?.(next, detail);
  }

  async function open() {
    leave();
    const mine = turn;
    let ws;
    tell("connecting");
    try {
      const address = await target();
      const offered = typeof protocols === "function" ? await protocols() : protocols;
      if (mine !== turn) return;
      ws = new WebSocket(address, offered);
    } catch (error) {
      if (mine === turn) lost({ code: 1006, reason: String(error) });
      return;
    }
    socket = ws;
    ws.binaryType = "arraybuffer";
    const patience = setTimeout(() => ws === socket && lost({ code: 1006, reason: "no answer" }), PATIENCE);
    ws.onopen = () => {
      clearTimeout(patience);
      if (ws !== socket) return;
      while (waiting.length) ws.send(waiting.shift());
      tell("open");
    };
    ws.onmessage = ({ data }) => ws === socket && take(data);
    ws.onclose = (event) => {
      clearTimeout(patience);
      if (ws === socket) lost(event);
    };
  }

  async function target() {
    const address = new URL(typeof url === "function" ? await url() : url, base);
    address.protocol = address.protocol.replace("http", "ws");
    for (const topic of new Set([...topics, ...positions.keys()])) {
      address.searchParams.append("topic", topic);
      address.searchParams.append("since", positions.get(topic) ?? "");
    }
    return address;
  }

  // Have nothing more to do with the attempt in use.
  function leave(code = 1000, reason = "") {
    socket?.close(code, reason); // raises if the code is none that a page may send
    socket = null;
    clearTimeout(timer);
    turn += 1;
  }

  function lost({ code, reason }) {
    leave();
    if (final(code)) {
      tell("closed", { code, reason });
      return;
    }
    // A random part of the pause keeps a thousand pages from coming back in the same moment.
    const delay = Math.min(MOST, LEAST * 2 ** attempts) * (0.5 + Math.random() / 2);
    attempts += 1;
    timer = setTimeout(open, delay);
    tell("waiting", { code, reason, delay });
  }

  function take(data) {
    attempts = 0;
    const frame = parsed(data);
    const { type, topic, position } = frame ?? {};
    if (position && (type === "message" || type === "joined")) positions.set(topic, position);
    if (type === "message") onMessage?.(frame.encoding === "base64" ? bytes(frame.data) : frame.data, { topic, position });
    else if (type === "joined") onJoined?.(frame);
    else if (type === "lost") onLost?.(frame);
    else if (type === "presence") onPresence?.(frame);
    else onFrame?.(frame);
  }

  // A system that tells that its network has gone or come back knows it before the connection does.
  function offline() {
    if (socket) lost({ code: 1006, reason: "offline" });
  }

  // The page is looked at again: its timers may have been slowed down, or stopped.
  function hurry() {
    if (state === "waiting" && !globalThis.document?.hidden) open();
  }

  return {
    send(data) {
      const plain = typeof data === "string" || data instanceof ArrayBuffer || ArrayBuffer.isView(data);
      const message = plain ? data : JSON.stringify(data);
      if (socket?.readyState === 1) socket.send(message);
      else if (state !== "closed" && waiting.length < queue) waiting.push(message);
      else return false;
      return true;
    },
    retry() {
      if (state === "waiting" || state === "closed") open();
    },
    close(code = 1000, reason = "") {
      leave(code, reason);
      waiting.length = attempts = 0;
      if (state !== "closed") tell("closed", { code, reason });
    },
    get state() {
      return state;
    },
    get positions() {
      return Object.fromEntries(positions);
    },
  };
}

function parsed(data) {
  try {
    return typeof data === "string" ? JSON.parse(data) : data;
  } catch {
    return data;
  }
}

function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.codePointAt(0));
}
