// The question that is being written: text with pictures between the words, as chips that are numbered on from the
// history's. What leaves here is a list of {text} and {picture: data URL}, in the order in which they stand.
//
// Inside, it is a list of items, characters and chips. A place is the number of items in front of it.

const LONGEST_SIDE = 1024; // pixels; larger pictures are scaled down before they are sent
const ZERO_WIDTH = /\u200b/g; // beside chips, so that the cursor has a place there
const COMPOSING = 229; // the key code with which Safari says so of the Enter that ends it
const PARTS = "application/x-sparkles-parts"; // in the clipboard

const editor = find(".editor");
const notice = find(".notice");
let cursor = null; // where the next picture goes while the focus is elsewhere
let arriving = 0; // pictures that are being read

if (!editor.isContentEditable) editor.contentEditable = "true";

// What is selected in the editor, or was when it last had the focus.
function selectedRange() {
  const selection = getSelection();
  const here = document.activeElement === editor && selection.rangeCount && editor.contains(selection.anchorNode);
  if (here) cursor = selection.getRangeAt(0).cloneRange();
  return cursor ?? rangeAt(Infinity);
}

document.addEventListener("selectionchange", selectedRange);

editor.addEventListener("focusin", ({ target }) => {
  const chip = chipAround(target);
  if (chip) cursor = rangeAt(contents().indexOf(chip) + 1);
});

function readUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

async function readPicture(file) {
  const bitmap = await createImageBitmap(file); // turned as its EXIF says
  const scale = LONGEST_SIDE / Math.max(bitmap.width, bitmap.height);
  if (file.type === "image/png" && scale >= 1) return readUrl(file); // as it is, to the pixel
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * Math.min(1, scale)));
  canvas.height = Math.max(1, Math.round(bitmap.height * Math.min(1, scale)));
  const pen = canvas.getContext("2d");
  pen.fillStyle = "white"; // behind what is transparent
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.92);
}

function newChip(url) {
  const remove = button("\u00d7", () => removeChip(chip), { tabindex: "-1" });
  const chip = make(
    "span",
    { class: "chip", contenteditable: "false", draggable: "true", tabindex: "0", role: "group", "data-picture": "" },
    make("img", { src: url, alt: "", draggable: "false" }),
    make("span"),
    remove,
  );
  return chip;
}

// A chip, and the places for the cursor beside it.
function withPlaces(chip) {
  return ["\u200b", chip, "\u200b"];
}

const chipAround = (node) => (node.closest ? node : node.parentElement)?.closest(".chip");

// The texts, chips and line breaks of which the editor's content consists, with the number of items in each.
function leaves() {
  const found = [];
  const walk = (node) => {
    if (node.nodeType === Node.TEXT_NODE) found.push([node, shownLength(node.data)]);
    else if (node.classList.contains("chip") || node.tagName === "BR") found.push([node, 1]);
    else node.childNodes.forEach(walk);
  };
  editor.childNodes.forEach(walk);
  return found;
}

function shownLength(text) {
  return text.replace(ZERO_WIDTH, "").length;
}

function contents() {
  return leaves().flatMap(([leaf]) => {
    if (leaf.nodeType === Node.TEXT_NODE) return leaf.data.replace(ZERO_WIDTH, "").split("");
    return leaf.tagName === "BR" ? "\n" : leaf;
  });
}

function placeOf(node, offset) {
  const end = document.createRange();
  end.setStart(node, offset);
  let place = 0;
  for (const [leaf, size] of leaves()) {
    if (leaf === node) return place + shownLength(leaf.data.slice(0, offset));
    if (end.comparePoint(leaf, 0) >= 0) break;
    place += size;
  }
  return place;
}

function rangeAt(place) {
  const range = document.createRange();
  range.selectNodeContents(editor);
  range.collapse(false);
  let left = place;
  for (const [leaf, size] of leaves()) {
    if (leaf.nodeType === Node.TEXT_NODE && left <= size) {
      let offset = 0;
      for (; left; offset += 1) left -= shownLength(leaf.data[offset]);
      range.setStart(leaf, offset);
      range.collapse(true);
      break;
    }
    left -= size;
  }
  return range;
}

function selected() {
  const { startContainer, startOffset, endContainer, endOffset } = selectedRange();
  return [placeOf(startContainer, startOffset), placeOf(endContainer, endOffset)];
}

function chips() {
  return [...editor.querySelectorAll(".chip")];
}

function number() {
  chips().forEach((chip, index) => {
    const name = String(current.next + index);
    const [, label, remove] = chip.children;
    if (chip.dataset.picture === name) return;
    chip.dataset.picture = name;
    label.textContent = `IMAGE#${name}`;
    chip.setAttribute("aria-label", `IMAGE#${name}; Delete removes it, Shift with an arrow key moves it`);
    remove.setAttribute("aria-label", `Remove IMAGE#${name}`);
  });
}

function removeChip(chip) {
  const items = contents();
  const place = items.indexOf(chip);
  write(items.toSpliced(place, 1), place);
  placeCursor(cursor);
}

function placeCursor(range) {
  editor.focus();
  getSelection().removeAllRanges();
  getSelection().addRange(range);
}

function insert(items, range) {
  range.deleteContents();
  const chip = chipAround(range.startContainer);
  if (chip) range.setStartAfter(chip);
  for (const node of nodesOf(items)) {
    range.insertNode(node);
    range.setStartAfter(node);
    range.collapse(true);
  }
  editor.normalize();
  placeCursor(range);
  tidy();
}

// Where they were dropped or the cursor was, though one may write on while they are read.
async function insertPictures(files, range = selectedRange().cloneRange()) {
  const given = [...files];
  if (!given.some(({ type }) => type.startsWith("image/"))) return tell("Only pictures can be put between the words.");
  arriving += 1;
  const read = await Promise.allSettled(given.map(readPicture));
  arriving -= 1;
  const urls = read.flatMap(({ value }) => value ?? []);
  if (urls.length) insert(urls.map(newChip), range);
  const failed = given.filter((_, index) => read[index].reason).map(({ name }) => name);
  const hint = "expected PNG, JPEG, WebP, GIF or BMP that this browser can show; it may be broken, or too large";
  tell(failed.length ? `Cannot be read: ${failed.join(", ")}; ${hint}.` : "");
}

function tell(text) {
  notice.textContent = text;
}

// The chip at the cursor's left or right, if nothing visible lies between.
function chipBeside(forward) {
  const selection = getSelection();
  if (!selection.isCollapsed || !editor.contains(selection.anchorNode)) return null;
  let { anchorNode: node, anchorOffset: offset } = selection;
  if (node.nodeType === Node.TEXT_NODE) {
    const between = forward ? node.data.slice(offset) : node.data.slice(0, offset);
    if (between.replace(ZERO_WIDTH, "")) return null;
    node = forward ? node.nextSibling : node.previousSibling;
  } else {
    node = node.childNodes[forward ? offset : offset - 1];
  }
  while (node?.nodeType === Node.TEXT_NODE && !node.data.replace(ZERO_WIDTH, "")) {
    node = forward ? node.nextSibling : node.previousSibling;
  }
  return node?.classList?.contains("chip") ? node : null;
}

function read(items = contents()) {
  const parts = [];
  for (const item of items) {
    if (item instanceof Node) parts.push({ picture: item.firstChild.src });
    else if (parts.at(-1)?.text !== undefined) parts.at(-1).text += item;
    else parts.push({ text: item });
  }
  return parts;
}

function question() {
  const parts = read();
  if (parts[0]?.text !== undefined) parts[0].text = parts[0].text.trimStart();
  if (parts.at(-1)?.text !== undefined) parts.at(-1).text = parts.at(-1).text.trimEnd();
  return parts.filter((part) => part.text !== "");
}

const itemsOf = (parts) => parts.flatMap(({ text, picture }) => (picture ? newChip(picture) : text.split("")));

function nodesOf(items) {
  const nodes = [];
  for (const item of items) {
    if (item instanceof Node) nodes.push(...withPlaces(item));
    else if (typeof nodes.at(-1) === "string") nodes.push(nodes.pop() + item);
    else nodes.push(item);
  }
  return nodes.map((node) => (node instanceof Node ? node : document.createTextNode(node)));
}

function write(items, place = items.length) {
  editor.replaceChildren(...nodesOf(items));
  editor.normalize();
  cursor = rangeAt(place);
  tidy(place);
}

function tidy(place) {
  number();
  if (peeked && !peeked.isConnected) peek.hidePopover();
  editor.classList.toggle("empty", !question().length);
  remember(place);
}

new MutationObserver(() => tidy()).observe(editor, { childList: true, subtree: true, characterData: true });

const FORWARD = { ArrowLeft: false, Backspace: false, ArrowRight: true, Delete: true };

// One key goes over what can be seen, or deletes it.
function skipZeroWidth(forward) {
  const selection = getSelection();
  const { anchorNode: node, anchorOffset } = selection;
  if (!selection.isCollapsed || node?.nodeType !== Node.TEXT_NODE) return;
  let offset = anchorOffset;
  while (node.data[forward ? offset : offset - 1] === "\u200b") offset += forward ? 1 : -1;
  if (offset !== anchorOffset) selection.collapse(node, offset);
}

editor.addEventListener("keydown", (event) => {
  const chip = event.target.closest(".chip");
  if (chip && (event.key === "Delete" || event.key === "Backspace")) {
    event.preventDefault();
    removeChip(chip);
  } else if (event.key in FORWARD && !chip) {
    skipZeroWidth(FORWARD[event.key]);
  } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== COMPOSING) {
    event.preventDefault();
    send();
  }
});

editor.addEventListener("beforeinput", (event) => {
  const forward = event.inputType === "deleteContentForward";
  const chip = forward || event.inputType === "deleteContentBackward" ? chipBeside(forward) : null;
  if (chip) {
    event.preventDefault();
    removeChip(chip);
  }
});

editor.addEventListener("paste", (event) => {
  event.preventDefault();
  placeCursor(selectedRange()); // from a chip
  const parts = partsIn(event.clipboardData);
  const text = event.clipboardData.getData("text/plain");
  if (parts) insert(itemsOf(parts), cursor);
  else if (text) document.execCommand("insertText", false, text); // of which office programs give a picture too
  else if (event.clipboardData.files.length) insertPictures(event.clipboardData.files);
});

// What was cut or copied here. Another page may have put something there that names pictures elsewhere: not fetched.
function partsIn(clipboard) {
  const given = clipboard.getData(PARTS);
  return given && JSON.parse(given).filter(({ picture }) => !picture || /^data:image\//.test(picture));
}

const words = (items) => items.map((item) => (item instanceof Node ? ` IMAGE#${item.dataset.picture} ` : item)).join("");

function copy(event) {
  const [start, end] = selected();
  if (start === end) return;
  event.preventDefault();
  const items = contents();
  const copied = items.slice(start, end);
  event.clipboardData.setData(PARTS, JSON.stringify(read(copied)));
  event.clipboardData.setData("text/plain", words(copied));
  if (event.type === "copy") return;
  items.splice(start, end - start);
  write(items, start);
  placeCursor(cursor);
}

editor.addEventListener("copy", copy);
editor.addEventListener("cut", copy);

find(".attach").addEventListener("click", () => find("input").click());
find("input").addEventListener("change", async ({ target }) => {
  await insertPictures(target.files);
  target.value = "";
});
find(".stop").addEventListener("click", () => act("stop"));
