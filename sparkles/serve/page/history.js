// Draws a conversation. All of it is made of nodes and text, never of markup: what users and models wrote stays text.

const find = (selector) => element.querySelector(selector);

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function button(label, action, attributes = {}) {
  const node = make("button", { type: "button", ...attributes }, label);
  node.addEventListener("click", action);
  return node;
}

let current = { key: null, turns: [], pictures: {}, next: 1, forgotten: 0 }; // until the server has said what there is

// Something was done to the conversation on the screen, of which there may be more elsewhere by now.
function act(name, data = {}) {
  trigger(name, { ...data, key: current.key, turns: current.turns.length, tries: current.turns.at(-1)?.tries ?? 0 });
}

const drawn = new WeakMap();

// Only what has changed is drawn again, so that focus, selection and what a screen reader speaks stay where they are.
function fill(node, data, draw) {
  const state = JSON.stringify(data);
  if (drawn.get(node) !== state) {
    drawn.set(node, state);
    node.replaceChildren(...draw(data));
  }
}

function speech(parts) {
  return parts.map((part) => {
    if (!part.picture) return part.text;
    const name = `IMAGE#${part.picture}`;
    const attributes = { type: "button", "data-picture": part.picture, "aria-describedby": "chat-peek" };
    if (part.text) {
      const label = part.text === name ? {} : { "aria-label": `${part.text}, shows ${name}` };
      return make("button", { ...attributes, ...label, class: "mention" }, part.text);
    }
    const image = make("img", { src: current.pictures[part.picture], alt: "" });
    return make("button", { ...attributes, class: "chip", "aria-label": `${name}, shows the picture` }, image, name);
  });
}

const ENDINGS = {
  stopped: "Stopped.",
  length: "Cut off: the limit of its length or time was reached.",
  content_filter: "This answer must not be shown here.",
};
const UNANSWERED = "Stopped. The model reads this question with the next one, unless you edit it.";
const VERDICTS = {
  good: ["Good", "Good answer"],
  bad: ["Bad", "Bad answer"],
  flagged: ["Flag", "Flag the answer as harmful or broken"],
};

function remarks({ turn, index, last }) {
  const notes = [];
  if (turn.ending === "stopped" && !turn.answer.length) notes.push(UNANSWERED);
  else if (ENDINGS[turn.ending]) notes.push(ENDINGS[turn.ending]);
  if (turn.tries > 1) notes.push(`Try ${turn.tries}.`);
  if (index < current.forgotten) notes.push("No longer seen by the model.");
  const nodes = notes.length ? [make("span", { class: "note" }, notes.join(" "))] : [];
  if (!turn.ending) return nodes;
  if (last) {
    nodes.push(button("Retry", () => act("retry")));
    nodes.push(button("Edit", () => act("edit"), { "aria-label": "Edit the question" }));
  }
  if (!props.rated || !turn.answer.length) return nodes;
  for (const [verdict, [label, hint]] of Object.entries(VERDICTS)) {
    const attributes = { "aria-label": hint, "aria-pressed": turn.verdict === verdict };
    const node = button(label, () => act("rate", { index, verdict }), attributes);
    node.disabled = Boolean(turn.verdict); // an answer is rated once
    nodes.push(node);
  }
  return nodes;
}

function newTurn() {
  const question = make("div", { class: "question", dir: "auto", role: "group", "aria-label": "You asked" });
  const spoken = { role: "group", "aria-label": "Answer", "aria-live": "polite" };
  const answer = make("div", { class: "answer", dir: "auto", ...spoken });
  return make("li", { class: "turn" }, question, answer, make("div", { class: "remarks" }));
}

function drawTurn(node, turn, index, last) {
  const [question, answer, foot] = node.children;
  node.classList.toggle("forgotten", index < current.forgotten);
  fill(question, turn.question, speech);
  answer.setAttribute("aria-busy", String(!turn.ending)); // spoken when it is complete
  answer.classList.toggle("writing", !turn.ending);
  fill(answer, turn.answer, speech);
  fill(foot, { turn, index, last, forgotten: current.forgotten }, remarks);
}

function drawWelcome() {
  find("h1").textContent = props.name;
  find(".welcome").hidden = current.turns.length > 0;
  fill(find(".about"), props.about, (about) => about.split("\n\n").map((paragraph) => make("p", {}, paragraph)));
  fill(find(".examples"), props.examples, (examples) =>
    examples.map(({ title, pictures }, index) => {
      const images = pictures.map((url) => make("img", { src: url, alt: "" }));
      const node = button("", () => act("example", { index }), { class: "example" });
      node.append(make("span", { class: "pictures" }, ...images), make("span", {}, title));
      return make("li", {}, node);
    }),
  );
}

function drawHistory() {
  const list = find(".turns");
  const { key, turns } = current;
  if (list.dataset.key !== key) list.replaceChildren();
  list.dataset.key = key;
  while (list.children.length > turns.length) list.lastChild.remove();
  while (list.children.length < turns.length) list.append(newTurn());
  turns.forEach((turn, index) => drawTurn(list.children[index], turn, index, index === turns.length - 1));
  const first = current.forgotten > 1 ? `first ${current.forgotten} questions` : "first question";
  const said = `The conversation has become too long for the model: it no longer sees the ${first}.`;
  find(".memory").textContent = current.forgotten ? said : "";
  if (peeked && !peeked.isConnected) peek.hidePopover();
  drawWelcome();
}

// The picture that is meant, beside the words that mean it.

const peek = find(".peek");
let peeked = null;

function peekAt(place) {
  const url = place.querySelector("img")?.src ?? current.pictures[place.dataset.picture];
  if (!url) return;
  const [image, caption, hint] = peek.children;
  image.src = url;
  caption.textContent = `IMAGE#${place.dataset.picture}`;
  hint.hidden = !place.draggable;
  peeked = place;
  peek.showPopover();
  const { left, top, bottom } = place.getBoundingClientRect();
  const floor = place.closest(".composer") ? innerHeight : find(".composer").getBoundingClientRect().top;
  const fits = bottom + 6 + peek.offsetHeight < floor || top < peek.offsetHeight;
  peek.style.left = `${Math.max(8, Math.min(left, innerWidth - peek.offsetWidth - 8))}px`;
  peek.style.top = `${fits ? bottom + 6 : top - peek.offsetHeight - 6}px`;
}

peek.firstChild.addEventListener("load", ({ target }) => target.classList.toggle("small", target.naturalWidth <= 128));
// "pointermove": what comes to lie under a pointer at rest is not pointed at.
for (const event of ["pointermove", "focusin", "click"]) {
  element.addEventListener(event, ({ target }) => {
    const place = target.closest("[data-picture]");
    if (place?.isConnected && (place !== peeked || !peek.matches(":popover-open"))) peekAt(place);
  });
}
for (const event of ["pointerout", "focusout"]) {
  element.addEventListener(event, ({ target }) => target.closest("[data-picture]") && peek.hidePopover());
}
document.addEventListener("keydown", ({ key }) => key === "Escape" && peek.hidePopover());
document.addEventListener("scroll", () => peek.hidePopover(), { passive: true });
