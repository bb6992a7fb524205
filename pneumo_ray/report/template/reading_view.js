// The image and the map on the reading page, after reading.js: its window, its size, and what the model says of it.
const LEVEL = 127.5, WIDTH = 255, MAP_SIZE = 256;

// ---- the image ----
const view = { level: LEVEL, width: WIDTH, invert: false, full: false };
const paper = $("image").getContext("2d", { willReadFrequently: true });
let grey = null, columns = 0, rows = 0; // grey levels of the file; null until the image is on the screen

function load(number) {
  const image = new Image();
  image.src = "data:image/jpeg;base64," + $("image-" + number).textContent;
  return image.decode().then(() => image);
}
let ahead = { number: -1, image: null };
const loaded = (number) => (ahead.number === number ? ahead.image : load(number));

// An answer is possible from here on until the next image is asked for.
const isOnScreen = () => grey !== null;

async function showImage() {
  grey = null;
  paper.clearRect(0, 0, columns, rows);
  const at = place, image = await loaded(data.items[at].image);
  if (at !== place) return;
  [columns, rows] = [image.naturalWidth, image.naturalHeight];
  const canvas = $("image");
  [canvas.width, canvas.height] = [columns, rows];
  paper.drawImage(image, 0, 0);
  const pixels = paper.getImageData(0, 0, columns, rows).data;
  grey = new Uint8Array(columns * rows); // filled in a loop: a callback for each of four million pixels takes half a second
  for (let i = 0; i < grey.length; i++) grey[i] = pixels[4 * i];
  paintImage();
  fit();
  startClock();
  canvas.dataset.place = at;
  const next = data.items[at + 1]?.image;
  if (next !== undefined) ahead = { number: next, image: load(next) };
}

// Grey levels from level - width / 2 to level + width / 2 become black to white.
function windowTable({ level, width, invert }) {
  return Uint8Array.from({ length: 256 }, (_, g) => {
    const shown = Math.round(255 * Math.min(1, Math.max(0, (g - level) / width + 0.5)));
    return invert ? 255 - shown : shown;
  });
}

function paintImage() {
  if (!grey) return;
  const table = windowTable(view), shown = new ImageData(columns, rows);
  const words = new Uint32Array(shown.data.buffer); // alpha, then three equal greys: the order of bytes does not matter
  const word = Uint32Array.from(table, (g) => (0xff000000 | (g << 16) | (g << 8) | g) >>> 0);
  for (let i = 0; i < grey.length; i++) words[i] = word[grey[i]];
  paper.putImageData(shown, 0, 0);
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
