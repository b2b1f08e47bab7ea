// Shows what comes through the stream, newest first, and sends the form without leaving the page.
const list = document.getElementById("messages");
const state = document.getElementById("state");
const form = document.getElementById("write");
const SHOWN = 100;
const PAUSE = 2000; // milliseconds
let last = "";

function show(text, detail) {
  const item = document.createElement("li");
  item.textContent = text;
  if (detail) {
    const small = document.createElement("small");
    small.textContent = " " + detail;
    item.append(small);
  }
  list.prepend(item);
  while (list.children.length > SHOWN) list.lastChild.remove();
}

// The browser connects again by itself, and tells which message it had last, unless it was answered with an error, as by
// a proxy whose server is being restarted: then it has given up, and this begins anew.
function connect() {
  const stream = new EventSource(last ? `${list.dataset.stream}?after=${last}` : list.dataset.stream);
  stream.onopen = () => { state.textContent = "Connected."; };
  stream.onerror = () => {
    state.textContent = "The connection is lost; trying again …";
    if (stream.readyState === EventSource.CLOSED) setTimeout(connect, PAUSE);
  };
  stream.onmessage = (event) => {
    last = event.lastEventId;
    const message = JSON.parse(event.data);
    show(`${message.name}: ${message.text}`, `through process ${message.pid}`);
  };
  stream.addEventListener("missed", (event) => show(`${event.data} messages were missed.`));
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const body = new URLSearchParams(new FormData(form));
  try {
    const answer = await fetch(form.action, { method: "POST", body });
    if (!answer.ok) throw new Error(`The server answered ${answer.status}.`);
    form.reset();
  } catch (error) {
    state.textContent = `Not sent: ${error.message}`;
  }
});

connect();
