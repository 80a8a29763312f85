// What the server says: `props.value` is the conversation as it is now.

let taken = null; // the last thing that was handed over once: a question to edit, a file to save

function take({ key, parts, file }) {
  if (key === taken) return;
  taken = key;
  if (parts) {
    write(itemsOf(parts));
    placeCursor(cursor);
  }
  if (file) make("a", { href: file.url, download: file.name }).click();
}

// On a phone the list of conversations lies over the chat.
function uncover() {
  if (innerWidth < 768) document.querySelector(".sidebar.open > .toggle-button")?.click();
}

function show(view) {
  const left = current.key && view?.key !== current.key && !view?.opened; // an answer where nobody looks any more
  if (!view || left) return;
  if (!early) sent = null;
  const reading = document.documentElement.scrollHeight - innerHeight - scrollY > 160;
  const fresh = view.key !== current.key || view.turns.length > current.turns.length;
  current = view;
  drawHistory();
  number();
  if (view.notice || view.opened || !view.answering) tell(view.notice); // while an answer grows, what was told stays
  find(".stop").hidden = !view.answering;
  find(".send").hidden = view.answering;
  if (view.handover) take(view.handover);
  if (view.opened) uncover();
  if (fresh || !reading) scrollTo({ top: view.turns.length ? document.documentElement.scrollHeight : 0 });
  if (early) act("ask", { parts: early });
  early = null;
}

watch("value", () => show(props.value));
show(props.value);
write(itemsOf(JSON.parse(sessionStorage.getItem(DRAFT) ?? "[]")));
