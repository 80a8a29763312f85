// Undo and redo. The browser's own know of words alone: pictures would not come back, and words at other places.

const MOST_STATES = 200;
const SINGLY = ["insertText", "insertCompositionText", "deleteContentBackward", "deleteContentForward"];

let states = [{ items: [], place: 0, typing: "" }];
let now = 0; // the one on the screen
let typing = ""; // how the next one comes about, if by single characters

function forget() {
  states = [{ items: [], place: 0, typing: "" }];
  now = 0;
}

// Characters that are typed one after the other up to the end of a word are undone together.
function remember(place = placeOfCaret()) {
  const items = contents();
  const last = states[now];
  if (items.length === last.items.length && items.every((item, index) => item === last.items[index])) return;
  const goesOn = typing && typing === last.typing && place - last.place === items.length - last.items.length;
  now += goesOn ? 0 : 1;
  states.splice(now, Infinity, { items, place, typing: items[place - 1] === " " ? "" : typing });
  typing = "";
  if (states.length > MOST_STATES) {
    states.shift();
    now -= 1;
  }
}

function placeOfCaret() {
  const { focusNode, focusOffset } = getSelection();
  return editor.contains(focusNode) ? placeOf(focusNode, focusOffset) : 0;
}

function travel(step) {
  const state = states[now + step];
  if (!state) return;
  now += step;
  write(state.items, state.place);
  placeCursor(cursor);
}

editor.addEventListener("beforeinput", (event) => {
  const steps = { historyUndo: -1, historyRedo: 1 };
  if (event.inputType in steps) {
    event.preventDefault();
    travel(steps[event.inputType]);
  }
  typing = SINGLY.includes(event.inputType) && !event.defaultPrevented ? event.inputType : "";
});

// The browser may have nothing to undo where there is something.
editor.addEventListener("keydown", (event) => {
  const key = event.key.toLowerCase();
  if (event.altKey || !(event.ctrlKey || event.metaKey) || !(key === "z" || (key === "y" && event.ctrlKey))) return;
  event.preventDefault();
  travel(key === "y" || event.shiftKey ? 1 : -1);
});
