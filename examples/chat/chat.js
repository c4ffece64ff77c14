// The chat page: one WebSocket, kept open. Whatever comes from others is shown by textContent, never as HTML.

const $ = (id) => document.getElementById(id);

let name = "";
let room = "";
let socket = null; // the WebSocket in use; null while there is none
let connected = false; // the server has said "welcome" on it
let welcomed = false; // it has said so since this page joined the room
let attempts = 0; // since the last "welcome"
let timer = 0; // of the countdown to the next attempt
let unconfirmed = []; // texts that were sent and have not come back yet
let typedAt = -Infinity; // when the server was last told that we are typing
let atEnd = true; // the newest message is in view
const people = new Set();
const typists = new Map(); // name -> timer

// ---- The connection -------------------------------------------------------------------------------------------------

function connect() {
  clearInterval(timer);
  show("connecting", attempts ? "Connecting again…" : "Connecting…");
  const url = new URL(`rooms/${encodeURIComponent(room)}`, location.href);
  url.protocol = url.protocol.replace("http", "ws");
  // A page can send no headers with a WebSocket: what tells who it is goes among the subprotocols.
  const ws = new WebSocket(url, ["chat", `base64url.bearer.authorization.k8s.io.${base64url(name)}`]);
  const patience = setTimeout(() => ws.close(), 10_000);
  ws.onopen = () => clearTimeout(patience);
  socket = ws;
  ws.onmessage = (event) => {
    if (ws !== socket) return;
    const message = JSON.parse(event.data);
    on[message.type]?.(message);
  };
  ws.onclose = (event) => {
    if (ws === socket) lost(event);
  };
}

function base64url(text) {
  const bytes = String.fromCharCode(...new TextEncoder().encode(text));
  return btoa(bytes).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

function lost({ code, reason }) {
  const before = connected;
  disconnected();
  if (code === 4409 && !welcomed) {
    enter(reason); // the name is taken
    return;
  }
  if (before) notice("Connection lost.");
  retry(code === 4409 ? "Your name is not free yet." : before ? "Connection lost." : "No connection.");
}

// The pause doubles with every attempt, up to half a minute. A random part of it keeps a thousand pages from coming back
// in the same moment after the server was restarted.
function retry(why) {
  const pause = Math.min(30, 2 ** attempts) * (0.5 + Math.random() / 2);
  attempts += 1;
  const due = performance.now() + pause * 1000;
  const tick = () => {
    const seconds = Math.ceil((due - performance.now()) / 1000);
    $("countdown").textContent = `in\u00a0${Math.max(seconds, 1)}\u00a0s`;
    if (seconds <= 0) connect();
  };
  show("waiting", `${why} Trying again`);
  timer = setInterval(tick, 200);
  tick();
}

function disconnected() {
  clearInterval(timer);
  socket = null;
  connected = false;
  people.clear();
  for (const user of [...typists.keys()]) stopped(user);
  showPeople();
  if (unconfirmed.length) {
    // What has not come back may never have arrived: it goes back to where it was written.
    $("text").value = [...unconfirmed, $("text").value].join("\n").trim();
    unconfirmed = [];
  }
}

function send(message) {
  if (connected) socket.send(JSON.stringify(message));
}

// What the server sends, by its type.
const on = {
  welcome({ users }) {
    if (welcomed) notice("You are back.");
    connected = welcomed = true;
    attempts = 0;
    sessionStorage.setItem("joined", "yes");
    people.clear();
    users.forEach((user) => people.add(user));
    show("connected", "Connected");
    showPeople();
  },
  joined({ user }) {
    people.add(user);
    showPeople();
    if (user !== name) notice(who(user), " joined");
    else if (!$("messages").childElementCount) notice("You joined ", who(`#${room}`), people.size > 1 ? "" : ", and nobody else is here yet");
  },
  left({ user }) {
    people.delete(user);
    stopped(user);
    showPeople();
    notice(who(user), " left");
  },
  said({ user, text }) {
    if (user === name) unconfirmed.shift();
    stopped(user);
    said(user, text);
  },
  typing({ user }) {
    if (user === name) return;
    clearTimeout(typists.get(user));
    typists.set(user, setTimeout(() => stopped(user), 4000));
    showTypists();
  },
  error({ detail }) {
    const refused = unconfirmed.shift() ?? "";
    $("text").value ||= refused;
    showSend();
    notice(`The server refused your message: ${detail}`).classList.add("trouble");
  },
};

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
  $("retry").hidden = state !== "waiting";
  $("text").placeholder = state === "connected" ? `Message #${room}` : "You can write on; sending waits for the connection";
  showSend();
}

function showSend() {
  $("send").disabled = !connected || !$("text").value.trim();
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

function said(user, text) {
  const last = $("messages").lastElementChild;
  const now = new Date();
  const time = element("time", "", now.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }));
  time.dateTime = now.toISOString();
  const header = colour(element("div", "who", who(user), time), user);
  const body = element("div", "text", text);
  body.dir = "auto";
  const message = element("div", "message", avatar(user), header, body);
  message.dataset.user = user;
  message.dataset.at = now.getTime();
  message.classList.toggle("own", user === name);
  message.classList.toggle("more", last?.dataset.user === user && now - last.dataset.at < 180_000);
  add(message);
  if (document.hidden) document.title = `● ${room} · Chat`;
}

function add(child) {
  const list = $("messages");
  list.append(child);
  while (list.childElementCount > 500) list.firstElementChild.remove();
  if (atEnd || child.classList.contains("own")) scrollToEnd();
  else $("newer").hidden = false;
  return child;
}

function scrollToEnd() {
  $("messages").scrollTop = $("messages").scrollHeight;
}

// ---- Coming and going -----------------------------------------------------------------------------------------------

function enter(refusal = "") {
  welcomed = false;
  sessionStorage.removeItem("joined");
  $("chat").hidden = true;
  $("entrance").hidden = false;
  $("refusal").textContent = refusal;
  $("name").ariaInvalid = refusal ? "true" : "false";
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
  $("text").focus();
  attempts = 0;
  connect();
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
  socket?.close(1000);
  disconnected();
  enter();
});

$("retry").addEventListener("click", connect);
addEventListener("online", () => {
  if (!socket && !$("chat").hidden) connect();
});

$("composer").addEventListener("submit", (submit) => {
  submit.preventDefault();
  const text = $("text").value.trim();
  if (!connected || !text) return;
  send({ type: "say", text });
  unconfirmed.push(text);
  $("text").value = "";
  typedAt = -Infinity;
  showSend();
});

$("text").addEventListener("input", () => {
  showSend();
  if ($("text").value && performance.now() - typedAt > 2500) {
    typedAt = performance.now();
    send({ type: "typing" });
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
