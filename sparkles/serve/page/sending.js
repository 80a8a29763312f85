// From the editor to the server, and back if the question does not get there. Drafts survive a reload of the page.

const DRAFT = "sparkles-draft"; // in this tab's storage

let sent = null; // the items of a question that is on its way, the conversation in which it was asked, and its turns
let early = null; // parts of a question that was sent before the server had said anything at all

function setSent(question) {
  sent = question;
  find(".send").textContent = sent ? "Sending…" : "Send";
}

function send() {
  const parts = question();
  if (current.answering) return tell("An answer is still being written; wait for its end, or stop it.");
  if (sent) return tell("The last question is still on its way; wait for its answer.");
  if (arriving) return tell("A picture is still being read; send the question when it is there.");
  if (!parts.length) return tell("The question is empty; write something, or add a picture.");
  tell("");
  setSent({ items: contents() });
  write([]);
  placeCursor(cursor);
  forget();
  if (current.key) return ask(parts);
  // Asked now, it would not be known in which conversation.
  early = parts;
  tell("The question waits for the server to answer.");
}

function ask(parts) {
  setSent({ ...sent, key: current.key, turns: current.turns.length });
  act("ask", { parts });
  watchOver();
}

// What was written meanwhile comes behind.
function putBefore(items) {
  const written = contents();
  const between = items.length && written.length ? ["\n"] : [];
  write([...items, ...between, ...written], items.length);
  placeCursor(cursor);
}

function giveBack(reason) {
  if (!sent) return;
  const { items } = sent;
  setSent(null);
  early = null;
  putBefore(items);
  tell(`${reason}; the question is here again.`);
}

// Gradio does not tell the page why a question did not get through, nor that it did not.
const fetchUntold = window.fetch;

const isQuestion = ([place, options]) =>
  String(place?.url ?? place).includes("/queue/join") && JSON.parse(options?.body ?? "{}").event_data?.parts;

async function reasonIn(answer) {
  if (answer.status === 401) return "You are no longer logged in: load the page again";
  const { error } = await answer.json().catch(() => ({}));
  return error?.message ?? `The server refused it with status ${answer.status}`;
}

window.fetch = async (...asked) => {
  let answer;
  try {
    answer = await fetchUntold(...asked);
  } catch (error) {
    if (sent && isQuestion(asked)) giveBack("The server cannot be reached");
    throw error;
  }
  if (!answer.ok && sent && isQuestion(asked)) giveBack(await reasonIn(answer.clone()));
  return answer;
};

addEventListener("sparkles-failure", () => giveBack("The server failed"));

find(".composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});

// Gradio loads the page again when a server that was away is back.
addEventListener("pagehide", () => {
  const parts = read([...(sent?.items ?? []), ...contents()]);
  try {
    sessionStorage.setItem(DRAFT, JSON.stringify(parts));
  } catch {
    // Pictures can be too large to be kept, words are not.
    sessionStorage.setItem(DRAFT, JSON.stringify(parts.filter(({ picture }) => !picture)));
    sessionStorage.setItem(`${DRAFT}-cut`, "yes");
  }
});

function restoreDraft() {
  write(itemsOf(JSON.parse(sessionStorage.getItem(DRAFT) ?? "[]")));
  if (sessionStorage.getItem(`${DRAFT}-cut`)) tell("The pictures were too large to be kept over the reload.");
  sessionStorage.removeItem(`${DRAFT}-cut`);
}
