// Behaviour of the reading page, after common.js and maps.js. Names are inserted as text, never as HTML.
const data = JSON.parse($("data").textContent);
const COLUMNS = ["image_id", "reader", "label", "confidence", "seconds", "blinded", "at"];
const CONFIDENCE = { 1: 1 / 3, 2: 2 / 3, 3: 1 };
const LABELS = new Map([[1, "pneumonia"], [0, "normal"], [null, "cannot say"]]);
const LEVEL = 127.5, WIDTH = 255, MAP_SIZE = 256;

// ---- what is kept ----
// answers: by place in the list {label, confidence, seconds, blinded, at}. `choice` is not kept before it is confirmed.
let reader = "", answers = {}, place = 0, choice, exported = true, keeps = true;

const storageKey = () => `pneumo_ray reading ${data.page} ${reader}`;

function trouble(why) {
  keeps = false;
  $("kept").textContent = `This browser keeps no data for this page (${why}). You can read all the same: the answers stay in this window until you close it, so export them before.`;
  $("kept").classList.add("trouble");
}

function remembered() {
  try {
    return JSON.parse(localStorage.getItem(storageKey())) ?? {};
  } catch (error) {
    trouble(error.name);
    return {};
  }
}

// Answers that another window has given meanwhile stay.
function keep() {
  exported = false;
  if (!keeps) return;
  answers = { ...remembered(), ...answers };
  try {
    localStorage.setItem(storageKey(), JSON.stringify(answers));
  } catch (error) {
    trouble(error.name);
  }
}

addEventListener("beforeunload", (event) => {
  if (!keeps && !exported) event.preventDefault();
});

// ---- the time of an answer ----
const spent = {};
let since = null;
const startClock = () => { since = document.hidden ? null : performance.now(); };
function stopClock() {
  if (since !== null) spent[place] = (spent[place] ?? 0) + (performance.now() - since) / 1000;
  since = null;
}
document.addEventListener("visibilitychange", () => {
  if ($("desk").hidden) return;
  if (document.hidden) stopClock(); else startClock();
});

// ---- the image ----
const view = { level: LEVEL, width: WIDTH, invert: false, full: false };
let grey = null, columns = 0, rows = 0;

function load(number) {
  const image = new Image();
  image.src = "data:image/jpeg;base64," + $("image-" + number).textContent;
  return image.decode().then(() => image);
}
let ahead = { number: -1, image: null };
const loaded = (number) => (ahead.number === number ? ahead.image : load(number));

async function showImage() {
  const at = place, image = await loaded(data.items[at].image);
  if (at !== place) return;
  [columns, rows] = [image.naturalWidth, image.naturalHeight];
  const canvas = $("image");
  [canvas.width, canvas.height] = [columns, rows];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, columns, rows).data;
  grey = Uint8Array.from({ length: columns * rows }, (_, i) => pixels[4 * i]);
  paintImage();
  fit();
  startClock();
  canvas.dataset.place = at; // the image is on the screen
  const next = data.items[at + 1]?.image;
  if (next !== undefined) ahead = { number: next, image: load(next) };
}

// Grey levels from level - width / 2 to level + width / 2 become black to white.
function windowTable({ level, width, invert }) {
  return Uint8Array.from({ length: 256 }, (_, g) => {
    const shown = 255 * Math.min(1, Math.max(0, (g - level) / width + 0.5));
    return Math.round(invert ? 255 - shown : shown);
  });
}

function paintImage() {
  if (!grey) return;
  const table = windowTable(view), shown = new ImageData(columns, rows);
  const words = new Uint32Array(shown.data.buffer); // alpha, then three equal greys: the order of bytes does not matter
  const word = Uint32Array.from(table, (g) => (0xff000000 | (g << 16) | (g << 8) | g) >>> 0);
  for (let i = 0; i < grey.length; i++) words[i] = word[grey[i]];
  $("image").getContext("2d").putImageData(shown, 0, 0);
}

// The whole image in the stage, or one pixel of it on one of the screen.
function fit() {
  const stage = $("stage"), canvas = $("image");
  const scale = view.full ? 1 / devicePixelRatio : Math.min(stage.clientWidth / columns, stage.clientHeight / rows);
  canvas.style.width = scale * columns + "px";
  canvas.style.height = scale * rows + "px";
  document.body.classList.toggle("full-size", view.full);
}
addEventListener("resize", () => { if (grey) fit(); });

function setView(changes) {
  Object.assign(view, changes);
  view.level = Math.min(255, Math.max(0, view.level));
  view.width = Math.min(255, Math.max(1, view.width));
  for (const name of ["level", "width"]) {
    $(name).value = view[name];
    $(name + "-shown").textContent = Math.round(view[name]);
  }
  for (const name of ["invert", "full"]) $(name).setAttribute("aria-pressed", view[name]);
  if (!grey) return;
  paintImage();
  fit();
}
const resetView = () => setView({ level: LEVEL, width: WIDTH, invert: false, full: false });

for (const name of ["level", "width"]) $(name).addEventListener("input", () => setView({ [name]: Number($(name).value) }));
$("invert").addEventListener("click", () => setView({ invert: !view.invert }));
$("full").addEventListener("click", () => setView({ full: !view.full }));
$("reset").addEventListener("click", resetView);

// A mouse drags the window, or moves a full-size image; fingers scroll.
$("stage").addEventListener("pointerdown", (down) => {
  if (down.pointerType !== "mouse" || down.button !== 0) return;
  const stage = $("stage"), before = { ...view }, [left, top] = [stage.scrollLeft, stage.scrollTop];
  const move = (now) => {
    const [x, y] = [now.clientX - down.clientX, now.clientY - down.clientY];
    if (view.full) stage.scrollTo({ left: left - x, top: top - y, behavior: "instant" });
    else setView({ level: before.level + y / 2, width: before.width + x / 2 });
  };
  stage.setPointerCapture(down.pointerId);
  stage.addEventListener("pointermove", move);
  addEventListener("pointerup", () => stage.removeEventListener("pointermove", move), { once: true });
  addEventListener("pointercancel", () => stage.removeEventListener("pointermove", move), { once: true });
});

// ---- what the model says ----
const colours = data.colours ? colourTable(data.colours) : null;
const isRevealed = () => data.reveal === "start" || (data.reveal === "after" && place in answers);
const isLocked = () => data.reveal === "after" && place in answers;

function showModel() {
  if (data.reveal === "never") return;
  const model = isRevealed() ? data.items[place].model : null;
  $("model").hidden = model === null;
  $("map").hidden = model === null || !$("show-map").checked;
  if (model === null) {
    $("opinion").textContent = "";
    return;
  }
  const called = model.prob >= data.threshold ? "pneumonia" : "normal";
  $("opinion").textContent = `Probability of pneumonia ${model.prob.toFixed(2)} (${model.low.toFixed(2)} to ${model.high.toFixed(2)} over the passes): called ${called} at ${data.threshold.toFixed(2)}. The map shows evidence for ${LABELS.get(model.target)}.`;
  paintMap(model);
}

function paintMap(model) {
  const limit = Math.max(...model.map), shown = new ImageData(MAP_SIZE, MAP_SIZE);
  const fine = upsample(model.map, data.map_size, model.window, MAP_SIZE, MAP_SIZE);
  for (let i = 0; limit > 0 && i < fine.length; i++) {
    const [at, alpha] = paintOf(fine[i], limit);
    shown.data.set([colours[at], colours[at + 1], colours[at + 2], Math.round(255 * alpha)], 4 * i);
  }
  $("map").width = $("map").height = MAP_SIZE;
  $("map").getContext("2d").putImageData(shown, 0, 0);
}
$("show-map")?.addEventListener("change", showModel);

// ---- answering ----
const answered = () => Object.keys(answers).length;
const furthest = () => data.items.findIndex((_, i) => !(i in answers));

function show(number) {
  stopClock();
  place = number;
  choice = answers[place]?.label;
  resetView();
  $("stage").scrollTo(0, 0);
  showControls();
  showModel();
  showImage();
}

function showControls() {
  const total = data.items.length, count = answered(), kept = answers[place];
  const end = count === total ? " All images are answered: export the answers." : "";
  $("place").textContent = `Image ${place + 1} of ${total}; ${count} answered.${isLocked() ? " The answer to this one is kept." : ""}${end}`;
  [$("done").value, $("done").max] = [count, total];
  $("image").setAttribute("aria-label", `image ${place + 1} of ${total}`);
  for (const button of document.querySelectorAll("#labels button")) {
    const label = button.dataset.label === "" ? null : Number(button.dataset.label);
    button.setAttribute("aria-pressed", choice === label);
    button.disabled = isLocked();
  }
  for (const button of document.querySelectorAll("#sure button")) {
    button.disabled = isLocked() || choice === undefined || choice === null;
    button.setAttribute("aria-pressed", kept !== undefined && kept.label === choice && kept.confidence === CONFIDENCE[button.dataset.sure]);
  }
  $("back").disabled = place === 0;
  $("next").disabled = choice === undefined || (place === total - 1 && kept !== undefined && kept.label === choice);
  for (const button of document.querySelectorAll(".export")) button.disabled = count === 0;
  listAnswers();
}

function choose(label) {
  if (isLocked()) return;
  choice = label;
  showControls();
}

// Keeps the answer, if it is a new one, and goes on; where the model is shown after the answer, that comes first.
function confirm(confidence = null) {
  if (choice === undefined) return;
  const kept = answers[place], isNew = !kept || kept.label !== choice || confidence !== null;
  if (isNew && !isLocked()) {
    const running = since !== null;
    stopClock();
    if (running) startClock();
    answers[place] = {
      label: choice,
      confidence: choice === null ? null : confidence,
      seconds: Math.round(10 * ((spent[place] ?? 0) + (kept?.seconds ?? 0))) / 10,
      blinded: data.reveal !== "start",
      at: new Date().toISOString(),
    };
    spent[place] = 0;
    keep();
    if (data.reveal === "after") {
      showControls();
      showModel();
      return;
    }
  }
  forward();
}

function forward() {
  const last = place === data.items.length - 1, open = furthest();
  if (!last) show(place + 1);
  else if (open >= 0) show(open);
  else showControls();
}

for (const button of document.querySelectorAll("#labels button")) {
  button.addEventListener("click", () => choose(button.dataset.label === "" ? null : Number(button.dataset.label)));
}
for (const button of document.querySelectorAll("#sure button")) {
  button.addEventListener("click", () => confirm(CONFIDENCE[button.dataset.sure]));
}
$("next").addEventListener("click", () => confirm());
$("back").addEventListener("click", () => show(place - 1));

const keys = {
  p: () => choose(1), n: () => choose(0), c: () => choose(null),
  1: () => sure(1), 2: () => sure(2), 3: () => sure(3), enter: () => confirm(),
  arrowleft: () => { if (place > 0) show(place - 1); }, backspace: () => keys.arrowleft(),
  arrowright: () => { if (place in answers && place < data.items.length - 1) show(place + 1); },
  i: () => $("invert").click(), f: () => $("full").click(), r: resetView, m: () => $("show-map")?.click(),
};
// "Cannot say" has no degree.
function sure(degree) {
  if (!isLocked() && choice !== undefined && choice !== null) confirm(CONFIDENCE[degree]);
}
addEventListener("keydown", (event) => {
  if ($("desk").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const on = event.target;
  if (on.closest("#start, a, input[type=range]")) return;
  if (on.closest("button, summary") && event.key === "Enter") return; // the button's own key
  const vertical = { ArrowUp: 4, ArrowDown: -4 }[event.key];
  const act = keys[event.key.toLowerCase()];
  if (vertical && on.closest("#desk, body") && !on.closest("#panel") && !view.full) {
    setView(event.shiftKey ? { width: view.width + vertical } : { level: view.level + vertical });
  } else if (act && !event.repeat) act();
  else return;
  event.preventDefault();
});

// ---- the list, and the export ----
const DEGREES = new Map([[null, ""], [CONFIDENCE[1], "hardly"], [CONFIDENCE[2], "fairly"], [CONFIDENCE[3], "very"]]);

function cell(content, cls) {
  const made = document.createElement("td");
  made.append(content);
  if (cls) made.className = cls;
  return made;
}

function listAnswers() {
  const lines = Object.entries(answers).map(([number, answer]) => {
    const line = document.createElement("tr"), button = document.createElement("button");
    button.type = "button";
    button.textContent = Number(number) + 1;
    button.addEventListener("click", () => { show(Number(number)); $("desk").scrollIntoView(); });
    line.append(cell(button), cell(LABELS.get(answer.label)), cell(DEGREES.get(answer.confidence) ?? ""), cell(answer.seconds.toFixed(1), "number"));
    return line;
  });
  $("given").tBodies[0].replaceChildren(...lines);
  $("given").hidden = lines.length === 0;
  $("count").textContent = `${lines.length} of ${data.items.length} images answered by ${reader}.`;
}

const quoted = (value) => (/[",\r\n]|^\s|\s$/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);

function csv() {
  const lines = Object.entries(answers).map(([number, answer]) => {
    const row = { ...answer, image_id: data.items[number].id, reader };
    if (answer.confidence !== null) row.confidence = answer.confidence.toFixed(3);
    return COLUMNS.map((name) => quoted(String(row[name] ?? ""))).join(",");
  });
  return [COLUMNS.join(","), ...lines, ""].join("\r\n");
}

for (const button of document.querySelectorAll(".export")) {
  button.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
    link.download = `readings-${reader.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40)}-${data.page}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    exported = true;
  });
}

// ---- beginning and end ----
$("start").addEventListener("submit", (event) => {
  event.preventDefault();
  reader = $("name").value.replace(/[\u0000-\u001f\u007f]/g, " ").trim();
  if (!reader) return;
  answers = keeps ? remembered() : {};
  const count = answered();
  if (keeps) $("kept").textContent = count ? `Continued: ${count} answers of ${reader} are kept in this browser.` : `The answers of ${reader} are kept in this browser.`;
  $("start").hidden = true;
  $("desk").hidden = false;
  show(Math.max(0, furthest() < 0 ? data.items.length - 1 : furthest()));
  $("stage").focus({ preventScroll: true });
  $("desk").scrollIntoView();
});
$("leave").addEventListener("click", () => {
  if (!keeps && !exported) {
    $("kept").textContent = "Export the answers first: this browser does not keep them.";
    $("start").scrollIntoView();
    return;
  }
  stopClock();
  [answers, choice, grey] = [{}, undefined, null];
  $("start").hidden = false;
  $("desk").hidden = true;
  $("name").focus();
});

try {
  localStorage.setItem("pneumo_ray", "");
  localStorage.removeItem("pneumo_ray");
} catch (error) {
  trouble(error.name);
}
