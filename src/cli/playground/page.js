"use strict";
const $ = id => document.getElementById(id);
const element = (name, text = "", props = {}) => Object.assign(document.createElement(name), { textContent: text }, props);
const percent = x => (100 * x).toFixed(1) + "%";
const sections = [...document.querySelectorAll("main > section")];

// Requests.

const request = async (path, options = {}) => {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The playground does not answer: is it still running?");
  }
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
};
const post = (path, body = "") => request(path, { method: "POST", body });

const complain = (place, error) => {
  place.hidden = !error;
  place.textContent = error ? error.message : "";
};

// Calls the function again as soon as it has finished if it was asked for meanwhile: only the latest state counts.
const live = work => {
  let busy = false, again = false;
  const run = async () => {
    if (busy) { again = true; return; }
    busy = true;
    do {
      again = false;
      await work();
    } while (again);
    busy = false;
  };
  return run;
};

// The models of a section.

let programs = [];
const rooms = {};

const score = ({ finished, metric, test }) =>
  !finished ? "training did not finish" : test ? `test ${metric.replace("_", " ").replace("f1", "F1")} ${test}` : "finished";

const showModels = () => {
  for (const section of sections) {
    const own = programs.filter(program => program.section === section.id);
    const box = section.querySelector(".model"), chosen = box.querySelector("select")?.value;
    const select = element("select", "", { id: "model-" + section.id });
    const runs = own.flatMap(program => program.runs.map(run => ({ program, run })));
    for (const { program, run } of runs) {
      select.add(new Option(`${program.name}, run ${run.name}: ${score(run)}`, `${program.name}/${run.id}`));
    }
    const best = runs.find(({ run }) => run.finished) ?? runs[0];
    const wanted = rooms[section.id].prefer ?? chosen;
    rooms[section.id].prefer = null;
    if (wanted && [...select.options].some(option => option.value === wanted)) select.value = wanted;
    else if (best) select.value = `${best.program.name}/${best.run.id}`;
    select.onchange = () => rooms[section.id].ask();
    const details = element("details");
    details.open = !runs.length;
    const list = element("ul", "", { className: "programs" });
    for (const program of own) {
      const button = element("button", "Train " + program.name, { type: "button" });
      if (!runs.length && program === own[0]) button.className = "primary";
      button.onclick = () => train(program.name);
      const item = element("li");
      item.append(button, element("span", program.about, { className: "note" }));
      list.append(item);
    }
    details.append(element("summary", runs.length ? "Train a new model" : "Train a model"), list);
    if (runs.length) {
      const label = element("label", "Model ");
      label.append(select);
      box.replaceChildren(label, details);
    } else {
      const what = `There is no model yet that ${section.dataset.what}. Train one here with the built-in data: it takes from some `
        + "seconds to a few minutes. Or train it on the command line, and load this page again.";
      box.replaceChildren(element("p", what, { className: "none" }), details);
    }
    section.querySelector(".work").hidden = !runs.length;
  }
};

// Asks the chosen model, and shows the answer or the error in the section. Errors about unfinished questions are not shown.
const ask = async (id, body, show, isUnfinished = () => false) => {
  const model = $("model-" + id)?.value, place = sections.find(section => section.id === id).querySelector(":scope > .error");
  if (!model) return;
  try {
    show(await post("/api/ask/" + model, body));
    complain(place);
  } catch (error) {
    if (!isUnfinished()) complain(place, error);
  }
};

// Training.

let followed = null, dismissed = false;

const train = async name => {
  try {
    dismissed = false;
    showTraining(await post("/api/train/" + name));
    $("training").scrollIntoView({ block: "nearest" });
    $("stop").focus();
    complain($("fault"));
    follow();
  } catch (error) {
    complain($("fault"), error);
    scrollTo(0, 0);
  }
};

const curve = (title, total, lines) => {
  const [width, height, left, right, top, bottom] = [440, 190, 56, 14, 26, 24];
  const values = lines.flatMap(([, values]) => values).filter(Number.isFinite);
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (high - low < 1e-9) { low -= 0.05 * Math.abs(low) + 1e-3; high += 0.05 * Math.abs(high) + 1e-3; }
  const x = epoch => left + (width - left - right) * (total > 1 ? (epoch - 1) / (total - 1) : 0.5);
  const y = value => top + (height - top - bottom) * (high - value) / (high - low);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("role", "img");
  const ends = lines.map(([name, values]) => `${name} ${values[values.length - 1]?.toPrecision(3)}`).join(", ");
  svg.setAttribute("aria-label", `${title}: ${ends}`);
  const add = (name, attributes, text = "") => {
    const child = document.createElementNS(svg.namespaceURI, name);
    Object.entries(attributes).forEach(([key, value]) => child.setAttribute(key, value));
    child.textContent = text;
    svg.append(child);
  };
  add("path", { class: "axis", d: `M${left},${top}V${height - bottom}H${width - right}` });
  for (const value of [low, high]) add("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, value.toPrecision(3));
  for (const epoch of new Set([1, total])) add("text", { x: x(epoch), y: height - 7, "text-anchor": "middle" }, epoch);
  add("text", { x: (left + width - right) / 2, y: height - 7, "text-anchor": "middle" }, "epoch");
  add("text", { x: left, y: 14 }, title);
  lines.forEach(([name, values], i) => {
    const points = values.map((value, epoch) => `${x(epoch + 1)},${y(value)}`);
    add("path", { class: name, d: "M" + points.join("L") });
    values.forEach((value, epoch) => add("circle", { class: name, cx: x(epoch + 1), cy: y(value), r: 3 }));
    add("text", { class: name, x: width - right, y: 14, "text-anchor": "end", dx: -90 * (lines.length - 1 - i) }, name);
  });
  return svg;
};

const showTraining = progress => {
  $("training").hidden = !progress || dismissed;
  if (!progress) return;
  const { program, run, running, stopping, total, epochs, lines } = progress;
  const last = lines[lines.length - 1] ?? "";
  const title = running ? `Training ${program}, run ${run.name}` : run.finished ? `${program} is trained: ${score(run)}`
    : stopping ? `The training of ${program} was stopped` : `The training of ${program} has failed`;
  $("training-title").textContent = title;
  $("training-progress").max = total ?? 1;
  $("training-progress").value = epochs.length;
  const epoch = epochs.length ? `Epoch ${epochs.length} of ${total}` : "Preparing the first epoch";
  $("training-status").textContent = stopping && running ? "Saving a checkpoint\u2026" : running ? epoch : last;
  $("stop").hidden = !running;
  $("stop").disabled = stopping;
  $("dismiss").hidden = running;
  if (!epochs.length) { $("curves").replaceChildren(); return; }
  const series = name => epochs.map(epoch => epoch[name]);
  const charts = [curve("loss", total, [["training", series("train_loss")], ["validation", series("val_loss")]])];
  if (run.metric && run.metric !== "loss") {
    charts.push(curve(run.metric.replace("_", " ").replace("f1", "F1"), total, [["validation", series("val_" + run.metric)]]));
  }
  $("curves").replaceChildren(...charts);
};

const follow = () => {
  clearTimeout(followed);
  followed = setTimeout(async () => {
    try {
      const progress = await request("/api/training");
      showTraining(progress);
      if (progress?.running) return follow();
      if (progress) {
        const section = programs.find(program => program.name === progress.program).section;
        rooms[section].prefer = `${progress.program}/${progress.run.id}`;
      }
      await refresh();
    } catch (error) {
      complain($("fault"), error);
    }
  }, 500);
};

$("stop").onclick = async () => {
  try {
    showTraining(await post("/api/stop"));
    follow();
  } catch (error) {
    complain($("fault"), error);
  }
};
$("dismiss").onclick = () => {
  dismissed = true;
  $("training").hidden = true;
};

// The sections.

let shown = sections[0];

const current = () => {
  shown = sections.find(section => "#/" + section.id === location.hash) ?? shown;
  return shown;
};

const showSection = () => {
  for (const section of sections) section.hidden = section !== current();
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === "#/" + current().id) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  scrollTo(0, 0);
  rooms[current().id].ask();
};

const refresh = async () => {
  try {
    programs = await request("/api/state");
    complain($("fault"));
    showModels();
    rooms[current().id].ask();
  } catch (error) {
    complain($("fault"), error);
  }
};

const start = async () => {
  for (const [id, open] of Object.entries({ digit, sentence, names, translation, text, music })) rooms[id] = { ask: open() };
  addEventListener("hashchange", showSection);
  showSection();
  await refresh();
  try {
    const progress = await request("/api/training");
    if (progress?.running) { showTraining(progress); follow(); }
  } catch (error) {
    complain($("fault"), error);
  }
};
start();
