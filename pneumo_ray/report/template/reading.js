// Answers on the reading page, after common.js. Names are inserted as text, never as HTML.
const data = JSON.parse($("data").textContent);
const COLUMNS = ["image_id", "reader", "label", "confidence", "seconds", "blinded", "at"];
const CONFIDENCE = { 1: 1 / 3, 2: 2 / 3, 3: 1 };
const LABELS = new Map([[1, "pneumonia"], [0, "normal"], [null, "cannot say"]]);

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

// ---- answering ----
const answered = () => Object.keys(answers).length;
const isLocked = () => data.reveal === "after" && place in answers; // the answer was given blinded, and stays so
const firstOpen = () => data.items.findIndex((_, i) => !(i in answers));

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
}

function choose(label) {
  if (isLocked() || !isOnScreen()) return;
  choice = label;
  showControls();
}

// Keeps the answer, if it is a new one, and goes on; where the model is shown after the answer, that comes first.
function give(confidence = null) {
  if (choice === undefined || !isOnScreen()) return;
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
    listAnswers();
    if (data.reveal === "after") {
      showControls();
      showModel();
      return;
    }
  }
  forward();
}

function forward() {
  const last = place === data.items.length - 1, open = firstOpen();
  if (!last) show(place + 1);
  else if (open >= 0) show(open);
  else showControls();
}

for (const button of document.querySelectorAll("#labels button")) {
  button.addEventListener("click", () => choose(button.dataset.label === "" ? null : Number(button.dataset.label)));
}
for (const button of document.querySelectorAll("#sure button")) {
  button.addEventListener("click", () => give(CONFIDENCE[button.dataset.sure]));
}
$("next").addEventListener("click", () => give());
$("back").addEventListener("click", () => show(place - 1));

const keys = {
  p: () => choose(1), n: () => choose(0), c: () => choose(null),
  1: () => sure(1), 2: () => sure(2), 3: () => sure(3), enter: () => give(),
  arrowleft: () => { if (place > 0) show(place - 1); }, backspace: () => keys.arrowleft(),
  arrowright: () => { if (place in answers && place < data.items.length - 1) show(place + 1); },
  i: () => $("invert").click(), f: () => $("full").click(), r: () => resetView(), m: () => $("show-map")?.click(),
};
// "Cannot say" has no degree.
function sure(degree) {
  if (!isLocked() && choice !== undefined && choice !== null) give(CONFIDENCE[degree]);
}
addEventListener("keydown", (event) => {
  if ($("desk").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const on = event.target;
  if (on.closest("#start, a") || (on.closest("input[type=range]") && event.key.startsWith("Arrow"))) return;
  // The button's own key, unless it is the answer that was just chosen.
  if (event.key === "Enter" && on.closest("button") && !on.closest('#labels [aria-pressed="true"]')) return;
  const vertical = { ArrowUp: 4, ArrowDown: -4 }[event.key];
  const act = keys[event.key.toLowerCase()];
  if (vertical && !on.closest("#panel, .scroll") && !view.full) {
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
    button.addEventListener("click", () => { show(Number(number)); $("desk").scrollIntoView({ behavior: "instant" }); });
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
  listAnswers();
  show(Math.max(0, firstOpen() < 0 ? data.items.length - 1 : firstOpen()));
  $("desk").scrollIntoView({ behavior: "instant" });
});
$("leave").addEventListener("click", () => {
  if (!keeps && !exported) {
    $("kept").textContent = "Export the answers first: this browser does not keep them.";
    $("start").scrollIntoView();
    return;
  }
  stopClock();
  [answers, choice] = [{}, undefined];
  for (const number of Object.keys(spent)) delete spent[number];
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
