"use strict";
// The page is complete without this: it adds filters, search, and pictures on hover and in full size.
const find = id => document.getElementById(id);
const lists = [...document.querySelectorAll("[data-list]")].map(filterable);

function filterable(list) {
  const items = [...list.querySelectorAll("article")];
  const controls = [...list.querySelectorAll("[data-filter]")];
  const texts = new Map();
  const textOf = item => {
    if (!texts.has(item)) texts.set(item, item.textContent.toLowerCase());
    return texts.get(item);
  };
  const value = name => controls.find(control =>
    control.dataset.filter === name && (control.type !== "radio" || control.checked))?.value ?? "";

  function apply() {
    const words = value("words").toLowerCase().split(/\s+/).filter(Boolean);
    const [outcome, kind, low, high] = ["outcome", "kind", "low", "high"].map(value);
    for (const item of items) {
      const { score } = item.dataset;
      item.hidden = !((!outcome || item.dataset.outcome === outcome)
        && (!kind || item.dataset.kind === kind)
        && (!low || (score && +score >= +low))
        && (!high || (score && +score <= +high))
        && words.every(word => textOf(item).includes(word)));
    }
    const left = items.filter(item => !item.hidden).length;
    list.querySelector(".shown").textContent = left === items.length ? `${left}` : `${left} of ${items.length}`;
    list.querySelector(".none").hidden = left > 0;
  }

  function reset() {
    for (const control of controls) {
      if (control.type === "radio") control.checked = control.value === "";
      else control.value = "";
    }
    apply();
  }

  for (const control of controls) control.addEventListener("input", apply);
  list.querySelector("[data-reset]").addEventListener("click", reset);
  list.querySelector(".filters").hidden = false;
  apply();
  return list;
}

// Two rows of a table on the same items.
for (const list of document.querySelectorAll("[data-pair]")) {
  const items = [...list.querySelectorAll("article")];
  const [one, other, which] = list.querySelectorAll("select");

  function apply() {
    for (const item of items) {
      const right = [one, other].map(side => {
        const answer = item.querySelector(`[data-row="${side.value}"]`);
        return answer.dataset.outcome === "right";
      });
      for (const answer of item.querySelectorAll("[data-row]")) {
        answer.hidden = ![one.value, other.value].includes(answer.dataset.row);
        answer.style.order = answer.dataset.row === one.value ? 0 : 1;
      }
      const shown = { differ: right[0] !== right[1], first: right[0] && !right[1], second: right[1] && !right[0], all: true };
      item.hidden = !shown[which.value];
    }
    const left = items.filter(item => !item.hidden).length;
    list.querySelector(".shown").textContent = `${left} of ${items.length}`;
    list.querySelector(".none").hidden = left > 0;
  }

  for (const choice of [one, other, which]) choice.addEventListener("input", apply);
  list.querySelector(".filters").hidden = false;
  apply();
}

// Pictures: a mention stands for the picture of the same name in its dialogue.
const pictureOf = place => place.matches(".picture") ? place : [...place.closest("article").querySelectorAll(".picture")]
  .find(picture => picture.dataset.mention === place.textContent);
const viewer = find("viewer"), peek = find("peek");
let album = [], at = 0;

function paint(pixels, picture) {
  pixels.className = `pixels ${picture.dataset.name}`;
}

function open(place) {
  const picture = pictureOf(place);
  if (!picture?.dataset.name) return;
  album = [...picture.closest("article").querySelectorAll(".picture:not([data-name=''])")];
  step(album.indexOf(picture));
  peek.hidden = true;
  viewer.showModal();
}

function step(to) {
  at = (to + album.length) % album.length;
  const { mention, caption } = album[at].dataset, pixels = viewer.querySelector(".pixels");
  paint(pixels, album[at]);
  pixels.setAttribute("aria-label", caption || mention);
  viewer.querySelector("strong").textContent = mention;
  viewer.querySelector(".caption").textContent = caption;
  viewer.querySelector(".place").textContent = `${at + 1} of ${album.length}`;
}

function showPeek(event) {
  const place = event.target.closest?.(".mention"), picture = place && pictureOf(place);
  peek.hidden = !picture?.dataset.name;
  if (peek.hidden) return;
  paint(peek.firstElementChild, picture);
  const box = place.getBoundingClientRect(), { offsetWidth: width, offsetHeight: height } = peek;
  peek.style.left = `${Math.max(8, Math.min(box.left, innerWidth - width - 8))}px`;
  peek.style.top = `${box.top > height + 8 ? box.top - height - 6 : box.bottom + 6}px`;
}

for (const event of ["mouseover", "focusin"]) document.addEventListener(event, showPeek);
document.addEventListener("scroll", () => showPeek({ target: document.activeElement }), { passive: true });
document.addEventListener("click", event => {
  const place = event.target.closest(".picture, .mention");
  if (place) open(place);
});
viewer.addEventListener("click", event => {
  const button = event.target.closest("button");
  if (button?.dataset.step) step(at + +button.dataset.step);
  else if (button || event.target === viewer) viewer.close();
});

// Keys: / searches, j and k walk through what is shown, Enter opens a picture.
function walk(by) {
  const items = [...document.querySelectorAll("article:not([hidden])")];
  const here = items.indexOf(document.activeElement.closest("article"));
  const next = here < 0 ? items.find(item => item.getBoundingClientRect().bottom > 0) : items[here + by];
  next?.focus({ preventScroll: true });
  next?.scrollIntoView({ block: "start" });
}

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (viewer.open) {
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") step(at + (event.key === "ArrowLeft" ? -1 : 1));
    return;
  }
  if (event.key === "Escape") peek.hidden = true;
  if (event.target.matches("input, select")) return;
  if (event.target.matches(".picture, .mention") && (event.key === "Enter" || event.key === " ")) {
    event.preventDefault();
    open(event.target);
  } else if (event.key === "/") {
    const list = lists.find(one => one.getBoundingClientRect().bottom > innerHeight / 2) ?? lists.at(-1);
    event.preventDefault();
    list?.querySelector("[type=search]").focus();
  } else if (event.key === "j" || event.key === "k") walk(event.key === "j" ? 1 : -1);
});
