// Pictures are dropped into the editor, and moved between its words: dragged, or by Shift and an arrow key.

const SEGMENTS = new Intl.Segmenter(undefined, { granularity: "word" });
const mark = find(".mark");
let dragged = null; // chip

const letter = (item = "\n") => (item instanceof Node ? "\ufffc" : item);
const isOpen = (item) => /\s/.test(letter(item)); // as before the first and behind the last
const isWord = (item) => /[\p{L}\p{N}\ufffc]/u.test(letter(item));

// The items without a chip and the space that it leaves behind, and where it was.
function without(items, chip) {
  const at = items.indexOf(chip);
  const [before, after] = [items[at - 1], items[at + 1]];
  const spaced = before === " " || after === " ";
  let start = at;
  let size = 1;
  if (after === " " && isOpen(before)) size = 2;
  else if (before === " " && !isWord(after)) [start, size] = [at - 1, 2];
  return { rest: items.toSpliced(start, size), start, size, spaced };
}

// A chip that stood between spaces does not stick to the words where it goes.
function withSpaces(chip, before, after, spaced) {
  const left = spaced && !isOpen(before) && !/\p{Ps}/u.test(letter(before)) ? [" "] : [];
  const right = spaced && isWord(after) ? [" "] : [];
  return [...left, chip, ...right];
}

function put(chip, place, { rest, spaced }) {
  const items = rest.toSpliced(place, 0, ...withSpaces(chip, rest[place - 1], rest[place], spaced));
  peek.hidePopover();
  write(items, items.indexOf(chip) + 1);
  say(`IMAGE#${chip.dataset.picture} stands ${whereabouts(items, chip)} now.`);
}

function moveTo(chip, place) {
  const taken = without(contents(), chip);
  const { start, size } = taken;
  if (place < start) put(chip, place, taken);
  else if (place > start + size) put(chip, place - size, taken);
  placeCursor(cursor);
}

function moveOn(chip, forward) {
  const taken = without(contents(), chip);
  const places = stops(taken.rest);
  const place = forward ? places.find((one) => one > taken.start) : places.findLast((one) => one < taken.start);
  if (place !== undefined) put(chip, place, taken);
  else say(`IMAGE#${chip.dataset.picture} stands at the ${forward ? "end" : "beginning"} already.`);
  chip.focus();
}

// Where words, pictures, lines and signs begin, and the end.
function stops(items) {
  const text = items.map(letter).join("");
  const begun = [...SEGMENTS.segment(text)].filter(({ segment }) => segment === "\n" || segment.trim());
  return [...begun.map(({ index }) => index), text.length];
}

function whereabouts(items, chip) {
  const at = items.indexOf(chip);
  const before = items.slice(0, at);
  if (before.every(isOpen)) return "at the beginning";
  if (items.slice(at + 1).every(isOpen)) return "at the end";
  return `behind ${words(before).trim().split(/\s+/).at(-1)}`;
}

// For who cannot see it.
function say(text) {
  find(".said").textContent = text;
}

function placeAt({ target, clientX, clientY }) {
  const chip = chipAround(target);
  if (chip) {
    const { left, right } = chip.getBoundingClientRect();
    return contents().indexOf(chip) + Number(clientX > (left + right) / 2);
  }
  const caret = document.caretPositionFromPoint?.(clientX, clientY);
  if (caret) return placeOf(caret.offsetNode, caret.offset);
  const { startContainer, startOffset } = document.caretRangeFromPoint(clientX, clientY);
  return placeOf(startContainer, startOffset);
}

function showMark(place) {
  const { left, top, height } = rangeAt(place).getClientRects()[0] ?? editor.getBoundingClientRect();
  mark.hidden = false;
  mark.style.left = `${left - 1}px`;
  mark.style.top = `${top}px`;
  mark.style.height = `${height}px`;
}

function dragOver(event) {
  const inside = editor.contains(event.target);
  if (dragged ? !inside : !event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  event.dataTransfer.dropEffect = dragged ? "move" : "copy";
  if (inside) showMark(placeAt(event));
}

editor.addEventListener("dragstart", (event) => {
  dragged = event.target.closest?.(".chip");
  if (!dragged) return event.preventDefault();
  event.dataTransfer.effectAllowed = "move";
  event.dataTransfer.setData("application/x-sparkles-chip", dragged.dataset.picture); // means nothing elsewhere
  peek.hidePopover();
});

for (const event of ["dragenter", "dragover"]) element.addEventListener(event, dragOver);

editor.addEventListener("dragleave", ({ relatedTarget }) => {
  if (!editor.contains(relatedTarget)) mark.hidden = true;
});

element.addEventListener("drop", (event) => {
  const inside = editor.contains(event.target);
  mark.hidden = true;
  if (dragged && inside) {
    event.preventDefault();
    if (editor.contains(dragged)) moveTo(dragged, placeAt(event));
  } else if (event.dataTransfer.files.length) {
    event.preventDefault();
    insertPictures(event.dataTransfer.files, inside ? rangeAt(placeAt(event)) : undefined);
  }
});

document.addEventListener("dragend", () => {
  dragged = null;
  mark.hidden = true;
});

editor.addEventListener("keydown", (event) => {
  const chip = event.target.closest(".chip");
  if (!chip || event.ctrlKey || event.metaKey || event.altKey) return;
  const right = event.key === "ArrowRight";
  if (right || event.key === "ArrowLeft") {
    event.preventDefault();
    const forward = right === (getComputedStyle(editor).direction === "ltr");
    if (event.shiftKey) moveOn(chip, forward);
    else placeCursor(rangeAt(contents().indexOf(chip) + Number(forward)));
  } else if (event.key.length === 1 && event.target === chip) {
    placeCursor(rangeAt(contents().indexOf(chip) + 1)); // what is typed comes behind it
  }
});
