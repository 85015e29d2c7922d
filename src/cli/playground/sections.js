"use strict";
// What each section of the page asks its model, and how it shows the answer. `page.js` has the rest.

// Bars of probabilities.
const bars = (box, classes, probabilities) => {
  const order = classes.map((_, i) => i);
  if (classes.length > 10) order.sort((a, b) => probabilities[b] - probabilities[a]).length = 10;
  const best = probabilities.indexOf(Math.max(...probabilities));
  if (box.childElementCount !== 3 * order.length) {
    box.replaceChildren(...order.flatMap(() => {
      const track = element("span", "", { className: "track" });
      track.append(element("div", "", { className: "fill" }));
      return [element("span"), track, element("span", "", { className: "share" })];
    }));
  }
  order.forEach((index, row) => {
    const [name, track, share] = [...box.children].slice(3 * row, 3 * row + 3);
    name.textContent = classes[index];
    track.firstChild.style.width = 100 * probabilities[index] + "%";
    share.textContent = percent(probabilities[index]);
    for (const part of [name, track.firstChild]) part.classList.toggle("best", index === best);
  });
  return best;
};

const prediction = (output, name, probability) => {
  output.textContent = `${name} `;
  output.append(element("small", percent(probability)));
};

const examples = (id, texts, field) => {
  const box = document.querySelector(`#${id} .examples`);
  box.append(...texts.map(text => {
    const button = element("button", text, { type: "button" });
    button.onclick = () => {
      field.value = text;
      field.dispatchEvent(new Event("input"));
    };
    return button;
  }));
};

// Draw a digit.

const digit = () => {
  const canvas = $("canvas"), page = canvas.getContext("2d", { willReadFrequently: true }), pen = $("pen");
  const start = $("digit-answer").textContent, side = canvas.width;
  let blank = true, last = null, at = [side / 2, side / 4], down = false;
  const picture = () => new Promise(done => canvas.toBlob(done, "image/png"));
  const show = live(async () => {
    if (blank) return;
    const body = await picture();
    await ask("digit", body, answer => {
      if (blank) return;
      const best = bars($("digit-bars"), answer.classes, answer.probabilities);
      prediction($("digit-answer"), answer.classes[best], answer.probabilities[best]);
      showMaps(answer);
    }, () => last || down);
  });
  const clear = () => {
    page.fillStyle = "#ffffff";
    page.fillRect(0, 0, side, side);
    blank = true;
    $("digit-answer").textContent = start;
    $("digit-bars").replaceChildren();
    $("maps-card").hidden = true;
    complain(document.querySelector("#digit > .error"));
  };
  const stroke = (from, to) => {
    page.strokeStyle = page.fillStyle = "#000000";
    page.lineWidth = 22;
    page.lineCap = page.lineJoin = "round";
    page.beginPath();
    page.moveTo(...from);
    page.lineTo(...to);
    page.stroke();
    // A line to its own start draws nothing.
    page.beginPath();
    page.arc(...to, page.lineWidth / 2, 0, 2 * Math.PI);
    page.fill();
    blank = false;
    show();
  };
  const place = event => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * side / box.width, (event.clientY - box.top) * side / box.height];
  };
  canvas.onpointerdown = event => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    last = place(event);
    stroke(last, last);
  };
  canvas.onpointermove = event => {
    if (!last) return;
    const next = place(event);
    stroke(last, next);
    last = next;
  };
  canvas.onpointerup = canvas.onpointercancel = () => {
    last = null;
    show();
  };
  const showPen = () => {
    pen.hidden = !canvas.matches(":focus-visible");
    pen.style.left = 100 * at[0] / side + "%";
    pen.style.top = 100 * at[1] / side + "%";
    pen.classList.toggle("down", down);
  };
  canvas.onfocus = showPen;
  canvas.onblur = () => { down = false; showPen(); };
  canvas.onkeydown = event => {
    const step = event.shiftKey ? 2 : 10;
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (move) {
      const next = at.map((x, axis) => Math.max(12, Math.min(side - 12, x + step * move[axis])));
      if (down) stroke(at, next);
      at = next;
    } else if (event.key === " ") {
      down = !down;
      if (down) stroke(at, at);
      else show();
    } else if (event.key === "Delete" || event.key === "Backspace") {
      clear();
    } else {
      return;
    }
    event.preventDefault();
    showPen();
  };
  $("clear").onclick = clear;
  $("sample").onclick = async () => {
    try {
      const { pixels } = await request("/api/digit/" + Math.floor(Math.random() * 1e6));
      const small = element("canvas", "", { width: 28, height: 28 }), image = new ImageData(28, 28);
      pixels.forEach((value, i) => image.data.set([255 - value, 255 - value, 255 - value, 255], 4 * i));
      small.getContext("2d").putImageData(image, 0, 0);
      clear();
      page.drawImage(small, 0, 0, side, side);
      blank = false;
      show();
    } catch (error) {
      complain(document.querySelector("#digit > .error"), error);
    }
  };
  $("file").onchange = async event => {
    const [file] = event.target.files;
    event.target.value = "";
    if (!file) return;
    try {
      const photo = await createImageBitmap(file), scale = side / Math.max(photo.width, photo.height);
      clear();
      const [width, height] = [photo.width * scale, photo.height * scale];
      page.drawImage(photo, (side - width) / 2, (side - height) / 2, width, height);
      blank = false;
      show();
    } catch {
      complain(document.querySelector("#digit > .error"), new Error(`${file.name}: not a picture, expected PNG or JPEG`));
    }
  };
  clear();
  return show;
};

// Grey squares, or one in colour, from hexadecimal digits.
const square = ({ width, height }, channels) => {
  const canvas = element("canvas", "", { width, height }), image = new ImageData(width, height);
  const byte = (channel, i) => parseInt(channel.slice(2 * i, 2 * i + 2), 16);
  for (let i = 0; i < width * height; i++) {
    image.data.set([0, 1, 2].map(c => byte(channels[Math.min(c, channels.length - 1)], i)).concat(255), 4 * i);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
};

const showMaps = ({ input, stages }) => {
  const stage = (title, canvases) => {
    const figure = element("div"), box = element("div", "", { className: "stage" });
    box.append(...canvases);
    figure.append(element("span", title, { className: "note" }), box);
    return figure;
  };
  const rows = [stage("Input: what the network reads", [square(input, input.maps)])];
  stages.forEach(({ maps, ...size }, i) => {
    rows.push(stage(`Stage ${i + 1}: ${maps.length} feature maps of ${size.height}x${size.width}`, maps.map(map => square(size, [map]))));
  });
  if (!stages.length) rows.push(element("p", "This network has no feature maps: lenet has.", { className: "note" }));
  $("maps").replaceChildren(...rows);
  $("maps-card").hidden = false;
};

// Texts that a model answers while one types.

const typed = (id, show, empty) => {
  const field = $(id + "-text");
  const update = live(async () => {
    if (!field.value.trim()) return empty();
    await ask(id, JSON.stringify({ text: field.value }), show);
  });
  field.oninput = update;
  return update;
};

const sentence = () => {
  examples("sentence", ["the opening was dull , but the ending was superb .", "the plot was clever and the cast was far from dull .",
    "the soup was never bland ."], $("sentence-text"));
  const show = ({ classes, probabilities, words, known, phrases, attributed }) => {
    const best = bars($("sentence-bars"), classes, probabilities);
    prediction($("sentence-answer"), classes[best], probabilities[best]);
    // A word has its share of each phrase.
    const heat = words.map(() => 0);
    for (const { start, end, contribution } of phrases) {
      for (let i = start; i < end; i++) heat[i] += contribution / (end - start);
    }
    const most = Math.max(1e-6, ...heat.map(Math.abs));
    $("words").replaceChildren(...words.flatMap((word, i) => {
      const span = element("span", word, { className: known[i] ? "" : "unknown", title: heat[i].toFixed(2) });
      span.style.background = `rgba(var(--${heat[i] > 0 ? "for" : "against"}), ${(0.75 * Math.abs(heat[i]) / most).toFixed(3)})`;
      return [span, " "];
    }));
    $("method").textContent = attributed
      ? "An amount is what the words add to the score of the class, the logit."
      : "An amount is what the score of the class, the logit, loses without the word.";
    const largest = Math.max(1e-6, ...phrases.map(phrase => Math.abs(phrase.contribution)));
    const amount = x => (Math.abs(x) < 0.005 ? "0.00" : (x > 0 ? "+" : "") + x.toFixed(2));
    $("phrases").replaceChildren(...phrases.slice(0, 6).map(({ text, contribution }) => {
      const row = element("tr"), bar = element("td"), fill = element("i");
      fill.style.width = 100 * Math.abs(contribution) / largest + "%";
      fill.className = contribution > 0 ? "for" : "against";
      bar.append(fill);
      row.append(element("td", text), element("td", amount(contribution), { className: "amount" }), bar);
      return row;
    }));
  };
  return typed("sentence", show, () => {
    for (const id of ["sentence-answer", "sentence-bars", "words", "phrases"]) $(id).replaceChildren();
  });
};

const names = () => {
  examples("names", ["Rose petals fell on Rose Keller in Paris", "Anna Weber of Siemens flew to Oslo on Monday"], $("names-text"));
  const colours = ["#0072b2", "#b35900", "#00785a", "#a0457c", "#5b5bd6", "#777777"];
  const show = ({ words, tags, known, classes }) => {
    const types = [...new Set(classes.filter(name => name.includes("-")).map(name => name.slice(2)))];
    const parts = [], found = [];
    words.forEach((word, i) => {
      const type = tags[i].includes("-") ? tags[i].slice(2) : null;
      const inside = span => span.append(element("span", word, { className: known[i] ? "" : "unknown" }));
      if (type && tags[i].startsWith("I-") && found.length) {
        const entity = found[found.length - 1];
        entity.words.push(word);
        const label = entity.span.lastChild;
        inside(entity.span);
        entity.span.append(label);
        return;
      }
      const span = element("span");
      inside(span);
      if (type) {
        span.className = "entity";
        span.style.setProperty("--entity", colours[types.indexOf(type) % colours.length]);
        span.append(element("small", type));
        found.push({ span, words: [word], type });
      }
      parts.push(span, " ");
    });
    $("tags").replaceChildren(...parts);
    const list = found.map(({ words, type }) => `${words.join(" ")} (${type})`).join(", ");
    $("names-answer").textContent = found.length ? `Found: ${list}` : "Found no names.";
  };
  return typed("names", show, () => {
    $("tags").replaceChildren();
    $("names-answer").textContent = "";
  });
};

const translation = () => {
  examples("translation", ["Sat the 5th of March 2016", "3/5/16 (US)", "3/5/16 (UK)", "5. März 2016"], $("translation-text"));
  const shown = token => token === " " ? "\u2423" : token.replace(/^<eos>$/, "\u23ce");
  const show = ({ translation, finished, unknown, attention }) => {
    $("translation-answer").textContent = translation + (finished ? " " : " \u2026");
    if (unknown) $("translation-answer").append(element("small", unknown === 1 ? "1 token is unknown" : `${unknown} tokens are unknown`));
    const table = $("attention");
    table.replaceChildren();
    if (!attention) { table.append(element("caption", "This model has no attention.")); return; }
    const head = table.createTHead().insertRow();
    head.append(element("td"), ...attention.source.map(token => element("th", shown(token), { scope: "col" })));
    const body = table.createTBody();
    attention.weights.forEach((weights, row) => {
      const line = body.insertRow();
      line.append(element("th", shown(attention.target[row]), { scope: "row" }));
      weights.forEach((weight, i) => {
        const cell = element("td", "", { title: `${shown(attention.target[row])} from ${shown(attention.source[i])}: ${percent(weight)}` });
        cell.style.background = `rgba(var(--for), ${weight.toFixed(3)})`;
        line.append(cell);
      });
    });
  };
  return typed("translation", show, () => {
    $("translation-answer").textContent = "";
    $("attention").replaceChildren();
  });
};

// Let the model write.

// Shows the values of sliders above them.
const sliders = formats => {
  for (const [id, format] of Object.entries(formats)) {
    const slider = $(id), output = slider.parentElement.querySelector("output");
    slider.oninput = () => { output.textContent = format(slider.value); };
    slider.oninput();
  }
};
const decimals = x => Number(x).toFixed(2);
const seed = () => Math.floor(Math.random() * 2 ** 32);

const text = () => {
  sliders({ temperature: decimals, "top-k": x => x === "0" ? "all" : x, length: x => x });
  let cells = [], spans = [], chosen = 0;
  const value = (cell, i) => (cell.values.charCodeAt(i) - 48) / 31.5 - 1;
  const choose = (index, focus) => {
    chosen = index;
    const cell = cells[index];
    [...$("cells").children].forEach((button, i) => {
      button.setAttribute("aria-checked", i === index);
      button.tabIndex = i === index ? 0 : -1;
      if (focus && i === index) button.focus();
    });
    $("cell-name").textContent = cell.name.replace(/ \((.*)\)/, ", selectivity $1");
    spans.forEach((span, i) => {
      const x = value(cell, i);
      span.style.background = `rgba(var(--${x > 0 ? "for" : "against"}), ${(0.75 * Math.abs(x)).toFixed(2)})`;
    });
  };
  $("cells").onkeydown = event => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    choose((chosen + step + cells.length) % cells.length, true);
  };
  const show = answer => {
    cells = answer.cells;
    spans = answer.tokens.map((token, i) => {
      const span = element("span", token);
      span.onpointerenter = () => {
        $("cell-name").textContent = `${cells[chosen].name}: ${JSON.stringify(token)} ${value(cells[chosen], i).toFixed(2)}`;
      };
      return span;
    });
    $("written").replaceChildren(element("b", $("prompt").value), ...spans);
    $("cells").replaceChildren(...cells.map((cell, i) => {
      const button = element("button", cell.name, { type: "button", title: cell.name });
      button.setAttribute("role", "radio");
      const clear = Number(cell.name.match(/\((.*)\)/)?.[1] ?? 0);
      button.style.setProperty("--clear", (0.1 + 0.9 * clear).toFixed(2));
      button.onpointerenter = button.onclick = () => choose(i);
      return button;
    }));
    $("written-card").hidden = false;
    $("text-answer").textContent = `Wrote ${answer.tokens.length} tokens`
      + (answer.unknown ? `; ${answer.unknown} of the beginning are unknown to the model` : "");
    choose(0);
  };
  const write = live(async () => {
    const body = {
      text: $("prompt").value, length: Number($("length").value), temperature: Number($("temperature").value),
      top_k: Number($("top-k").value), seed: seed(),
    };
    $("text-answer").textContent = "Writing\u2026";
    await ask("text", JSON.stringify(body), show);
    if ($("text-answer").textContent === "Writing\u2026") $("text-answer").textContent = "";
  });
  $("write").onsubmit = event => {
    event.preventDefault();
    write();
  };
  return () => {};
};

// Compose a piece.

const music = () => {
  sliders({ bars: x => x, "music-temperature": decimals });
  const compose = live(async () => {
    const body = { bars: Number($("bars").value), temperature: Number($("music-temperature").value), seed: seed() };
    $("music-answer").textContent = "Composing\u2026";
    await ask("music", JSON.stringify(body), answer => {
      // A page of its own, which may run its script only.
      $("piece").src = answer.page;
      $("piece").hidden = false;
    });
    $("music-answer").textContent = "";
  });
  $("compose").onsubmit = event => {
    event.preventDefault();
    compose();
  };
  return () => {};
};
