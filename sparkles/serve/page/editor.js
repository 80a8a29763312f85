// The question that is being written: text with pictures between the words, as chips that are numbered on from the
// history's. What leaves here is a list of {text} and {picture: data URL}, in the order in which they stand.

const LONGEST_SIDE = 1024; // pixels; larger pictures are scaled down before they are sent
const ZERO_WIDTH = /\u200b/g; // beside chips, so that the cursor has a place there

const editor = find(".editor");
const notice = find(".notice");
let cursor = null; // where the next picture goes while the focus is elsewhere
let arriving = 0; // pictures that are being read

if (!editor.isContentEditable) editor.contentEditable = "true";

document.addEventListener("selectionchange", () => {
  const selection = getSelection();
  if (selection.rangeCount && editor.contains(selection.anchorNode)) cursor = selection.getRangeAt(0).cloneRange();
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
    { class: "chip", contenteditable: "false", tabindex: "0", role: "group", "data-picture": "" },
    make("img", { src: url, alt: "", draggable: "false" }),
    make("span"),
    remove,
  );
  return chip;
}

// A chip, and the place for the cursor behind it.
function withPlace(url) {
  return [newChip(url), document.createTextNode("\u200b")];
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
    chip.setAttribute("aria-label", `IMAGE#${name}; Delete removes it`);
    remove.setAttribute("aria-label", `Remove IMAGE#${name}`);
  });
}

function removeChip(chip) {
  const after = document.createRange();
  after.setStartAfter(chip);
  chip.remove();
  placeCursor(after);
}

function placeCursor(range) {
  editor.focus();
  getSelection().removeAllRanges();
  getSelection().addRange(range);
}

function insert(...nodes) {
  let range = cursor;
  if (!range || !editor.contains(range.startContainer)) {
    range = document.createRange();
    range.selectNodeContents(editor);
    range.collapse(false);
  }
  range.deleteContents();
  for (const node of nodes) {
    range.insertNode(node);
    range.setStartAfter(node);
    range.collapse(true);
  }
  placeCursor(range);
  tidy();
}

async function insertPictures(files) {
  const wanted = [...files].filter((file) => file.type.startsWith("image/"));
  if (!wanted.length) return tell("Only pictures can be put between the words.");
  arriving += 1;
  try {
    const urls = await Promise.all(wanted.map(readPicture));
    insert(...urls.flatMap(withPlace));
    tell("");
  } catch {
    tell("This picture cannot be read; expected PNG, JPEG, WebP, GIF or BMP.");
  } finally {
    arriving -= 1;
  }
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

function read() {
  const parts = [];
  const write = (text) => {
    if (parts.at(-1)?.text !== undefined) parts.at(-1).text += text;
    else parts.push({ text });
  };
  const walk = (node) => {
    if (node.nodeType === Node.TEXT_NODE) write(node.data.replace(ZERO_WIDTH, ""));
    else if (node.classList.contains("chip")) parts.push({ picture: node.firstChild.src });
    else if (node.tagName === "BR") write("\n");
    else node.childNodes.forEach(walk);
  };
  editor.childNodes.forEach(walk);
  if (parts[0]?.text !== undefined) parts[0].text = parts[0].text.trimStart();
  if (parts.at(-1)?.text !== undefined) parts.at(-1).text = parts.at(-1).text.trimEnd();
  return parts.filter((part) => part.text !== "");
}

function write(parts) {
  editor.replaceChildren(...parts.flatMap((part) => (part.picture ? withPlace(part.picture) : part.text)));
  const end = document.createRange();
  end.selectNodeContents(editor);
  end.collapse(false);
  placeCursor(end);
}

function tidy() {
  number();
  editor.classList.toggle("empty", !read().length);
}

function send() {
  const parts = read();
  if (arriving || current.answering || !parts.length) return;
  tell("");
  write([]);
  trigger("ask", { parts });
}

new MutationObserver(tidy).observe(editor, { childList: true, subtree: true, characterData: true });

editor.addEventListener("keydown", (event) => {
  const chip = event.target.closest(".chip");
  if (chip && (event.key === "Delete" || event.key === "Backspace")) {
    event.preventDefault();
    removeChip(chip);
  } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
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
  if (event.clipboardData.files.length) insertPictures(event.clipboardData.files);
  else document.execCommand("insertText", false, event.clipboardData.getData("text/plain"));
});

editor.addEventListener("dragstart", (event) => event.preventDefault());

element.addEventListener("dragover", (event) => {
  if (event.dataTransfer.types.includes("Files")) event.preventDefault();
});

element.addEventListener("drop", (event) => {
  if (!event.dataTransfer.files.length) return;
  event.preventDefault();
  if (editor.contains(event.target)) {
    const place = document.caretPositionFromPoint?.(event.clientX, event.clientY);
    cursor = document.createRange();
    if (place) cursor.setStart(place.offsetNode, place.offset);
    else cursor = document.caretRangeFromPoint(event.clientX, event.clientY);
  }
  insertPictures(event.dataTransfer.files);
});

find(".attach").addEventListener("click", () => find("input").click());
find("input").addEventListener("change", async ({ target }) => {
  await insertPictures(target.files);
  target.value = "";
});
find(".stop").addEventListener("click", () => trigger("stop", {}));
find(".composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
