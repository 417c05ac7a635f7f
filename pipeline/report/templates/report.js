// Controls of the pages: a slider between two pictures, the intermediate images of a run, the
// comparison of two experiments, and the table of all. Without this script the pages still show every picture and number.
"use strict";

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function range(label, maximum, step, value) {
  const input = make("input", { type: "range", min: 0, max: maximum, step, value });
  return [make("label", {}, label, input), input];
}

// Lays the content or style image over the result, cut off at the position of the slider.
function slider(figure) {
  const roles = [...document.querySelectorAll("[data-role]")];
  if (!roles.length) return;
  const result = figure.querySelector("img");
  const over = make("img", { alt: "" });
  const box = make("div", { className: "slider" });
  const [label, input] = range("", 100, "any", 0);
  input.setAttribute("aria-label", "Share of the picture that shows the other image, in percent");
  const controls = make("fieldset", { className: "controls", ariaLabel: "Compare the result" });
  for (const role of roles) {
    const image = role.querySelector("img");
    const choice = make("input", { type: "radio", name: "against", value: role.dataset.role });
    choice.addEventListener("change", () => { over.src = image.src; over.alt = image.alt; });
    controls.append(make("label", {}, choice, `against the ${role.dataset.role}`));
  }
  result.before(box);
  box.append(result, over);
  box.after(controls);
  controls.append(label);
  const cut = (percent) => {
    input.value = percent;
    box.style.setProperty("--cut", `${input.value}%`);
  };
  const follow = (event) => {
    const { left, width } = box.getBoundingClientRect();
    cut((100 * (event.clientX - left)) / width);
  };
  input.addEventListener("input", () => cut(input.value));
  box.addEventListener("pointerdown", (event) => {
    box.setPointerCapture(event.pointerId);
    event.preventDefault();
    follow(event);
  });
  box.addEventListener("pointermove", (event) => { if (event.buttons) follow(event); });
  controls.querySelector("[type=radio]").click();
  cut(0);
}

// Shows one intermediate image, chosen by a range input or by a click on its thumbnail.
function stepper(box) {
  const figures = [...box.querySelectorAll("figure")];
  const shown = make("img");
  const caption = make("figcaption", { ariaLive: "polite" });
  const [label, input] = range("evaluation ", figures.length - 1, 1, figures.length - 1);
  const choose = (index) => {
    input.value = index;
    const { src, alt } = figures[index].querySelector("img");
    Object.assign(shown, { src, alt });
    const evaluation = figures[index].querySelector("figcaption").textContent;
    caption.textContent = `evaluation ${evaluation}`;
    input.setAttribute("aria-valuetext", evaluation);
    figures.forEach((figure, other) => {
      figure.classList.toggle("chosen", other === index);
      figure.querySelector("button").ariaCurrent = String(other === index);
    });
  };
  figures.forEach((figure, index) => {
    const image = figure.querySelector("img");
    const button = make("button", { type: "button" });
    image.before(button);
    button.append(image);
    button.addEventListener("click", () => choose(index));
  });
  input.addEventListener("input", () => choose(Number(input.value)));
  box.prepend(make("div", { className: "controls" }, label));
  box.append(make("figure", { className: "frame" }, shown, caption));
  choose(figures.length - 1);
}

// Shows two experiments with the same zoom and position, and the settings that differ.
function compare(page, { settings, experiments }) {
  const find = (name) => experiments.find((each) => each.name === name);
  const zoom = document.getElementById("zoom");
  const sides = ["a", "b"].map((key) => ({
    key,
    choice: document.getElementById(`choice-${key}`),
    place: document.getElementById(`side-${key}`),
    title: document.getElementById(`name-${key}`),
  }));
  const position = { x: 0, y: 0 }; // of the upper left corner, as fractions of the picture

  let scale = 1;

  function move() {
    for (const key of ["x", "y"]) position[key] = Math.min(Math.max(position[key], 0), 1 - 1 / scale);
    for (const image of page.querySelectorAll(".view img")) {
      image.style.transform = `scale(${scale}) translate(${-100 * position.x}%, ${-100 * position.y}%)`;
      image.parentElement.classList.toggle("zoomed", scale > 1);
    }
  }

  // Zooms about the centre of the visible part.
  function zoomTo(wanted) {
    zoom.value = wanted;
    const before = scale;
    scale = Number(zoom.value);
    for (const key of ["x", "y"]) position[key] += 0.5 / before - 0.5 / scale;
    move();
  }

  function view(each) {
    if (!each.image) return make("p", { className: "missing" }, `No result. ${each.reason}`);
    const image = make("img", { src: each.image, alt: `Result of ${each.name}`, draggable: false });
    const box = make("div", { className: "view", tabIndex: 0, role: "group", ariaLabel: `${each.name}, zoomed` }, image);
    const shift = (x, y) => {
      const { width, height } = image.getBoundingClientRect(); // of the zoomed picture
      position.x -= x / width;
      position.y -= y / height;
      move();
    };
    box.addEventListener("pointerdown", (event) => box.setPointerCapture(event.pointerId));
    box.addEventListener("pointermove", (event) => {
      if (event.buttons) shift(event.movementX, event.movementY);
    });
    box.addEventListener("wheel", (event) => {
      if (!event.deltaY || (scale === 1 && !event.ctrlKey)) return; // the page scrolls
      event.preventDefault();
      zoomTo(scale * (event.deltaY < 0 ? 1.25 : 0.8));
    }, { passive: false });
    box.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[event.key];
      if (event.key === "+") zoomTo(scale + 0.5);
      else if (event.key === "-") zoomTo(scale - 0.5);
      else if (step && scale > 1) shift(...step);
      else return;
      event.preventDefault();
    });
    const link = make("a", { href: `experiments/${each.name}.html` }, each.name);
    const curves = make("figure", { className: "plot" }, make("img", { src: each.curves, alt: `Losses of ${each.name}` }));
    return make("figure", {}, box, make("figcaption", {}, link), curves);
  }

  function draw() {
    const chosen = sides.map((side) => find(side.choice.value));
    sides.forEach((side, index) => {
      side.place.replaceChildren(view(chosen[index]));
      side.title.textContent = chosen[index].name;
    });
    const rows = settings
      .map((key, index) => [key, ...chosen.map((each) => each.settings[index])])
      .filter(([, left, right]) => left !== right)
      .map(([key, ...values]) => make("tr", {}, make("th", { scope: "row" }, key), ...values.map((value) => make("td", {}, value))));
    const none = make("tr", {}, make("td", { colSpan: 3 }, "none"));
    document.getElementById("differences").replaceChildren(...(rows.length ? rows : [none]));
    move();
  }

  function read() {
    const wanted = new URLSearchParams(location.hash.slice(1));
    for (const side of sides) {
      if (find(wanted.get(side.key))) side.choice.value = wanted.get(side.key);
    }
    if (!wanted.get("b") && sides[0].choice.value === sides[1].choice.value) {
      const other = experiments.find((each) => each.name !== sides[0].choice.value);
      if (other) sides[1].choice.value = other.name;
    }
    draw();
  }

  for (const side of sides) {
    side.choice.addEventListener("change", () => {
      const names = sides.map(({ key, choice }) => `${key}=${encodeURIComponent(choice.value)}`);
      history.replaceState(null, "", `#${names.join("&")}`);
      draw();
    });
  }
  zoom.addEventListener("input", () => zoomTo(Number(zoom.value)));
  window.addEventListener("hashchange", read);
  page.hidden = false;
  read();
}

// Shows the rows of the experiments that have the words searched for and the settings chosen, in the
// order of the column whose title was clicked.
function filter(table, { experiments }) {
  const rows = [...table.tBodies[0].rows];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const search = document.getElementById("search");
  const choices = [...document.querySelectorAll("[data-setting]")];
  const collator = new Intl.Collator("en", { numeric: true });
  const setting = (choice, index) => experiments[index].settings[choice.dataset.setting];

  function show() {
    const words = search.value.toLowerCase().split(/\s+/);
    const chosen = choices.filter((choice) => choice.value);
    rows.forEach((row, index) => {
      row.hidden = !words.every((word) => texts[index].includes(word))
        || chosen.some((choice) => JSON.stringify(setting(choice, index)) !== choice.value);
    });
    const count = rows.filter((row) => !row.hidden).length;
    document.getElementById("count").value = `${count} of ${rows.length} experiments`;
  }

  function sort(title) {
    const direction = title.ariaSort === "ascending" ? -1 : 1;
    const value = (row) => row.cells[title.cellIndex].textContent.trim();
    const compared = (one, other) => { // numbers such as 1.2e-05 too; empty cells come last
      if (!one || !other) return (one ? 0 : 1) - (other ? 0 : 1);
      const difference = one - other;
      return direction * (Number.isNaN(difference) ? collator.compare(one, other) : difference);
    };
    const values = new Map(rows.map((row) => [row, value(row)]));
    table.tBodies[0].append(...rows.toSorted((a, b) => compared(values.get(a), values.get(b))));
    for (const each of table.querySelectorAll("thead th")) each.ariaSort = null;
    title.ariaSort = direction === 1 ? "ascending" : "descending";
  }

  for (const choice of choices) {
    const values = new Set(rows.map((_, index) => setting(choice, index)));
    const options = [...values].sort(collator.compare);
    choice.append(make("option", { value: "" }, "any"));
    choice.append(...options.map((each) => make("option", { value: JSON.stringify(each) }, each)));
    choice.addEventListener("change", show);
  }
  for (const title of table.querySelectorAll("thead th")) {
    const button = make("button", { type: "button" }, title.textContent);
    button.addEventListener("click", () => sort(title));
    title.replaceChildren(button);
  }
  search.addEventListener("input", show);
  document.getElementById("filters").hidden = false;
  show();
}

document.querySelectorAll("[data-slider]").forEach(slider);
document.querySelectorAll("[data-stepper]").forEach(stepper);
if (document.getElementById("compare")) {
  const content = JSON.parse(document.getElementById("experiments").textContent);
  compare(document.getElementById("compare"), content);
  filter(document.getElementById("all"), content);
}
