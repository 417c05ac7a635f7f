"use strict";

// {pairs: [{name, content, style, results: [[preset, file], …]}]}; files lie in pictures/.
const { pairs } = JSON.parse(document.querySelector("#data").textContent);
const FORMAT = "preset votes 1";
const PRIOR = 1;
const CHOICES = ["left", "right", "tie"];
const presetOf = new Map(pairs.flatMap((pair) => pair.results.map(([preset, file]) => [file, preset])));
const presets = [...new Set(presetOf.values())];
const pairOf = new Map(pairs.flatMap((pair) => pair.results.map(([, file]) => [file, pair.name])));
const votes = new Map(); // by id, so that a file that is loaded twice counts once
const element = (id) => document.getElementById(id);
let waiting = []; // comparisons in random order, each once before any comes again
let current;
let unsaved = false;

function shuffle(items) {
  for (let last = items.length - 1; last > 0; last--) {
    const other = Math.floor(Math.random() * (last + 1));
    [items[last], items[other]] = [items[other], items[last]];
  }
  return items;
}

function allComparisons() {
  return pairs.flatMap((pair) => pair.results.flatMap(([, one], place) =>
    pair.results.slice(place + 1).map(([, other]) => ({ pair, files: shuffle([one, other]) }))));
}

function showNext() {
  if (!waiting.length) waiting = shuffle(allComparisons());
  current = waiting.pop();
  const { pair, files } = current;
  element("content").src = `pictures/${pair.content}`;
  element("style").src = `pictures/${pair.style}`;
  element("left").firstElementChild.src = `pictures/${files[0]}`;
  element("right").firstElementChild.src = `pictures/${files[1]}`;
}

function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function vote(choice) {
  const [left, right] = current.files;
  const id = newId();
  const presets = { left_preset: presetOf.get(left), right_preset: presetOf.get(right) };
  votes.set(id, { id, pair: current.pair.name, left, right, ...presets, choice });
  unsaved = true;
  element("message").textContent = "";
  showNext();
  showCounts();
}

function showCounts() {
  element("count").textContent = votes.size === 1 ? "1 vote" : `${votes.size} votes`;
  const counts = new Map(presets.map((preset) => [preset, 0]));
  const wins = [...votes.values()].flatMap(({ left, right, choice }) => {
    const [one, other] = [presetOf.get(left), presetOf.get(right)];
    for (const preset of [one, other]) counts.set(preset, counts.get(preset) + 1);
    if (choice === "left") return [{ winner: one, loser: other, count: 1 }];
    if (choice === "right") return [{ winner: other, loser: one, count: 1 }];
    return [[one, other], [other, one]].map(([winner, loser]) => ({ winner, loser, count: 0.5 }));
  });
  const strengths = bradleyTerry(presets, wins, PRIOR);
  const sorted = [...presets].sort((one, other) => strengths[other] - strengths[one]);
  const body = document.querySelector("#ratings tbody");
  body.replaceChildren(...sorted.map((preset) => {
    const row = document.createElement("tr");
    const title = document.createElement("th");
    title.scope = "row";
    title.textContent = preset;
    row.append(title);
    for (const text of [strengths[preset].toFixed(2), counts.get(preset)]) {
      row.insertCell().textContent = text;
    }
    return row;
  }));
}

function download() {
  const text = JSON.stringify({ format: FORMAT, votes: [...votes.values()] }, null, 2);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "votes.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  unsaved = false;
}

function isVoteOfThisPage(each) {
  return each && typeof each.id === "string" && CHOICES.includes(each.choice)
    && each.left !== each.right && presetOf.has(each.left) && presetOf.has(each.right)
    && pairOf.get(each.left) === pairOf.get(each.right);
}

async function load(files) {
  const messages = [];
  for (const file of files) {
    let content = null;
    try {
      content = JSON.parse(await file.text());
    } catch { /* the message says it */ }
    if (content?.format !== FORMAT || !Array.isArray(content.votes)) {
      messages.push(`${file.name} is not a file of votes.`);
    } else if (!content.votes.every(isVoteOfThisPage)) {
      messages.push(`${file.name} has votes on other pictures than those of this page.`);
    } else {
      const before = votes.size;
      for (const each of content.votes) votes.set(each.id, each);
      messages.push(`${file.name}: ${votes.size - before} votes added.`);
      unsaved ||= votes.size > before;
    }
  }
  element("message").textContent = messages.join(" ");
  element("load").value = "";
  showCounts();
}

for (const side of ["left", "right", "tie"]) {
  element(side).addEventListener("click", () => vote(side));
}
element("download").addEventListener("click", download);
element("load").addEventListener("change", (event) => load([...event.target.files]));
element("show").addEventListener("click", () => {
  const hidden = element("ratings").toggleAttribute("hidden");
  element("show").textContent = hidden ? "Show the ratings" : "Hide the ratings";
  element("show").ariaExpanded = String(!hidden);
});
document.addEventListener("keydown", (event) => {
  const choice = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie" }[event.key];
  if (!choice || event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  vote(choice);
});
window.addEventListener("beforeunload", (event) => {
  if (unsaved) event.preventDefault();
});
showNext();
showCounts();
