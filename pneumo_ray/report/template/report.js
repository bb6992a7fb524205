// Behaviour of the report, after common.js and maps.js. File names are inserted as text, never as HTML.
const data = JSON.parse(document.getElementById("data").textContent);

// ---- the threshold ----
// The number in an input, clamped to `low` and `high`; NaN if it is blank, where Number("") would be 0.
function numberIn(input, low, high) {
  return input.value.trim() === "" ? NaN : Math.min(high, Math.max(low, Number(input.value)));
}

// As number_text of pneumo_ray.evaluate.number_text: nothing is rounded to 0, or to all, that is not exactly there.
function numberText(value, decimals, full) {
  if (!Number.isFinite(value)) return "undefined";
  const certain = (number) => number === 0 || number === full;
  for (let digits = decimals; digits < decimals + 4; digits++) {
    const shown = value.toFixed(digits);
    if (certain(Number(shown)) === certain(value)) return shown;
  }
  return value.toFixed(decimals);
}

const percent = (value) => numberText(100 * value, 1, 100) + (Number.isFinite(value) ? " %" : "");

function showThreshold(counts, text) {
  const { positives, negatives } = data.slider;
  const [tp, fp] = counts;
  const [fn, tn] = [positives - tp, negatives - fp];
  const sensitivity = tp / positives, specificity = tn / negatives;
  const prevalence = numberIn($("prevalence"), 0, 100) / 100;
  const ill = sensitivity * prevalence, alarm = (1 - specificity) * (1 - prevalence);
  const missed = (1 - sensitivity) * prevalence, cleared = specificity * (1 - prevalence);
  const shown = {
    tn: tn.toLocaleString("en"), fp: fp.toLocaleString("en"), fn: fn.toLocaleString("en"), tp: tp.toLocaleString("en"),
    sensitivity: percent(sensitivity), specificity: percent(specificity),
    accuracy: percent((tp + tn) / (positives + negatives)),
    ppv: percent(ill / (ill + alarm)), npv: percent(cleared / (cleared + missed)),
    alarms: numberText(1000 * alarm, 1, 1000),
    misses: numberText(1000 * missed, 1, 1000),
  };
  for (const [name, value] of Object.entries(shown)) $("live-" + name).textContent = value;
  $("live-threshold").textContent = text;
}

// Screen readers get one line after the slider stops, not the tables at every step.
const QUIET_MS = 600;
let pending;
function say(...names) {
  clearTimeout(pending);
  pending = setTimeout(() => {
    $("live-line").textContent = names.map(([words, name]) => `${words} ${$("live-" + name).textContent}`).join(", ");
  }, QUIET_MS);
}

if (data.slider) {
  const slider = $("threshold"), exact = $("threshold-number");
  let current;
  const show = (counts, text) => {
    current = [counts, text];
    showThreshold(counts, text);
    slider.setAttribute("aria-valuetext", text); // otherwise it is read as 0 to 1000
  };
  const sayThreshold = () => say(["threshold", "threshold"], ["sensitivity", "sensitivity"], ["specificity", "specificity"]);
  const at = (thousandths) => {
    const k = Math.min(1000, Math.max(0, Math.round(thousandths)));
    slider.value = k;
    exact.value = (k / 1000).toFixed(3);
    show([data.slider.positive[k], data.slider.negative[k]], (k / 1000).toFixed(3));
  };
  const stored = () => {
    slider.value = Math.round(1000 * data.slider.stored.threshold);
    exact.value = data.slider.stored.threshold.toFixed(3);
    show(data.slider.stored.counts, data.slider.stored.threshold.toFixed(4) + " (stored with the model)");
  };
  slider.addEventListener("input", () => { at(Number(slider.value)); sayThreshold(); });
  exact.addEventListener("change", () => {
    const wanted = numberIn(exact, 0, 1);
    if (Number.isNaN(wanted)) exact.value = (slider.value / 1000).toFixed(3);
    else { at(1000 * wanted); sayThreshold(); }
  });
  $("threshold-stored").addEventListener("click", () => { stored(); sayThreshold(); });
  $("threshold-half").addEventListener("click", () => { at(500); sayThreshold(); });
  $("prevalence").addEventListener("input", () => {
    showThreshold(...current);
    say(["positive predictive value", "ppv"], ["negative predictive value", "npv"]);
  });
  $("prevalence").addEventListener("change", () => {
    const used = numberIn($("prevalence"), 0, 100);
    if (!Number.isNaN(used) && used !== Number($("prevalence").value)) $("prevalence").value = used;
  });
  stored();
}

// ---- the gallery ----
const STEP = 24, SIZE = 224;
const colours = Object.fromEntries(Object.entries(data.colours).map(([name, hex]) => [name, colourTable(hex)]));

function paint(canvas, picture, map, limit, table, seen) {
  canvas.width = canvas.height = SIZE;
  const context = canvas.getContext("2d");
  if (picture) context.drawImage(picture, 0, 0, SIZE, SIZE);
  if (map && limit > 0) paintMap(context, map, limit, table, seen);
  const [left, top, right, bottom] = seen.map((edge) => edge * SIZE);
  if (left <= 0 && top <= 0 && right >= SIZE && bottom >= SIZE) return;
  context.strokeStyle = "#56B4E9";
  context.setLineDash([3, 3]);
  context.strokeRect(left, top, right - left, bottom - top);
}

function paintMap(context, map, limit, table, seen) {
  const image = context.getImageData(0, 0, SIZE, SIZE), fine = upsample(map, data.map_size, seen, SIZE, SIZE);
  for (let i = 0; i < fine.length; i++) {
    const [at, alpha] = paintOf(fine[i], limit);
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = image.data[4 * i + c] * (1 - alpha) + table[at + c] * alpha;
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

function element(name, text, cls) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (cls) made.className = cls;
  return made;
}

const CLASSES = ["normal", "pneumonia"];
const strongest = { mean: 0, std: 0 };
for (const c of data.cases) for (const kind of ["mean", "std"]) strongest[kind] = Math.max(strongest[kind], ...c[kind]);

function card(c) {
  const item = element("li", undefined, "case");
  item.dataset.id = c.id;
  item.append(element("h4", c.id));
  const line = element("p");
  line.append(element("span", c.outcome, "tag" + (c.outcome.startsWith("false") ? " false" : "")));
  const interval = c.low === null || c.high === null ? "" : ` (${c.low.toFixed(2)} to ${c.high.toFixed(2)})`;
  const information = c.mi === null ? "unknown" : c.mi.toFixed(4) + " nats";
  line.append(` p ${c.p.toFixed(3)}${interval} · mutual information ${information}`);
  item.append(line);
  const shared = $("one-scale").checked;
  const floor = c.mean.map((value, i) => Math.max(0, value - 1.96 * c.std[i]));
  const top = shared ? strongest.mean : Math.max(...c.mean), spread = shared ? strongest.std : Math.max(...c.std);
  const evidence = "evidence for " + CLASSES[c.target];
  const panels = [
    ["radiograph", null, 0, null],
    [`${evidence}, mean of the passes, up to ${Math.max(...c.mean).toPrecision(2)}`, c.mean, top, colours.inferno],
    [`uncertainty, standard deviation up to ${Math.max(...c.std).toPrecision(2)}`, c.std, spread, colours.viridis],
    [`lower bound over the passes: mean - 1.96 sd, up to ${Math.max(...floor).toPrecision(2)}`, floor, top, colours.inferno],
  ];
  const grid = element("div", undefined, "panels");
  const canvases = panels.map(([caption]) => {
    const canvas = element("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${c.id}: ${caption}`);
    const box = element("div");
    box.append(canvas, caption);
    grid.append(box);
    return canvas;
  });
  item.append(grid, element("p", "research use only", "soft"));
  const draw = (picture) => panels.forEach(([, map, limit, table], i) => paint(canvases[i], picture, map, limit, table, c.window));
  if (c.picture) {
    const picture = new Image();
    picture.addEventListener("load", () => draw(picture));
    picture.src = "data:image/jpeg;base64," + c.picture;
  } else {
    item.append(element("p", "the image is no longer readable", "soft"));
    draw(null);
  }
  return item;
}

const orders = {
  uncertain: (a, b) => (b.mi ?? -1) - (a.mi ?? -1), // unknown comes last
  highest: (a, b) => b.p - a.p,
  lowest: (a, b) => a.p - b.p,
  wrong: (a, b) => Math.abs(b.residual ?? 0) - Math.abs(a.residual ?? 0),
  name: (a, b) => a.id.localeCompare(b.id),
};
let limit = STEP;

function gallery() {
  const chosen = new Set([...document.querySelectorAll("input[name=outcome]:checked")].map((box) => box.value));
  // A blank limit means no limit.
  const limitIn = (id, none) => ($(id).value.trim() === "" ? none : Number($(id).value));
  const low = limitIn("p-low", -Infinity), high = limitIn("p-high", Infinity), least = limitIn("mi-low", -Infinity);
  const words = $("find").value.toLowerCase();
  const found = data.cases.filter((c) =>
    chosen.has(c.outcome) && c.p >= low && c.p <= high && (c.mi ?? 0) >= least && c.id.toLowerCase().includes(words));
  found.sort(orders[$("order").value]);
  $("cases").replaceChildren(...found.slice(0, limit).map(card));
  $("count").textContent = `${Math.min(limit, found.length)} of ${found.length} shown; the page contains ${data.cases.length} of ${data.pictures.toLocaleString("en")} images`;
  $("more").hidden = found.length <= limit;
}

if (data.cases.length) {
  for (const control of document.querySelectorAll("#gallery-controls input, #gallery-controls select")) {
    control.addEventListener("input", () => { limit = STEP; gallery(); });
  }
  $("more").addEventListener("click", () => { limit += STEP; gallery(); });
  gallery();
}
