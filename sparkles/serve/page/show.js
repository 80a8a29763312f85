// What the server says: `props.value` is the conversation as it is now.

const SILENCE = 1500; // milliseconds without news of an answer until the page asks for some
const PATIENCE = 4; // times that it asks without hearing anything

const kept = new Map(); // by conversation, what was said to it while another was on the screen
let taken = null; // the last thing that was handed over once: a question to edit, a file to save
let looking = 0;
let unheard = 0;

function take({ key, parts, file }) {
  if (key === taken) return;
  taken = key;
  if (parts) putBefore(itemsOf(parts));
  if (file) make("a", { href: file.url, download: file.name }).click();
}

// On a phone the list of conversations lies over the chat.
function uncover() {
  if (innerWidth < 768) document.querySelector(".sidebar.open > .toggle-button")?.click();
}

function hasArrived(view) {
  return view.handover?.parts || (view.key === sent?.key && view.turns.length > sent.turns);
}

function show(news) {
  if (!news) return;
  unheard = 0;
  if (hasArrived(news)) setSent(null);
  if (current.key && news.key !== current.key && !news.opened) {
    if (news.notice || news.handover) kept.set(news.key, { notice: news.notice, handover: news.handover });
    return;
  }
  const view = news.opened ? { ...news, ...kept.get(news.key) } : news;
  kept.delete(view.key);
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
  if (early) ask(early);
  early = null;
  watchOver();
}

function watchOver() {
  clearTimeout(looking);
  if (current.answering || sent) looking = setTimeout(look, SILENCE);
}

// The answer may have been asked for by another tab, or before the page was loaded, and nobody tells of it here. Or
// gradio has lost the way from the server, and does not know: then the page is loaded again, if it is to be had.
async function look() {
  unheard += 1;
  const isThere = () => fetch("theme.css", { cache: "no-store" }).then(({ ok }) => ok, () => false);
  if (unheard > PATIENCE && (await isThere())) return location.reload();
  act("look");
  watchOver();
}

watch("value", () => show(props.value));
show(props.value);
restoreDraft();
