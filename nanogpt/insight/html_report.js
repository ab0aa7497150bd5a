// `digits` and `names`, the character of each code, are defined by the page.
const symbols = {" ": "␣", "\n": "⏎", "\t": "⇥"};
const tip = document.getElementById("tip"), main = document.querySelector("main");
const number = (code) => code.reduce((n, digit) => 64 * n + digits.indexOf(digit), 0);
const percent = (p) => 100 * p < 0.05 ? (100 * p).toPrecision(1) : (100 * p).toFixed(1);
function row(tag, name, middle, p, className) {
  const line = tip.appendChild(document.createElement("div"));
  line.className = className;
  line.appendChild(document.createElement(tag)).textContent = name;
  line.appendChild(middle);
  line.appendChild(document.createElement("span")).textContent = percent(p) + " %";
}
function show(event) {
  const c = event.target.closest(".c");
  tip.hidden = !c;
  if (!c) return;
  const data = [...c.dataset.t], name = symbols[c.textContent] || c.textContent;
  const bits = number(data.slice(0, 3)) / 1000, box = c.getClientRects()[0];
  tip.replaceChildren();
  row("b", name, document.createTextNode(bits.toFixed(2) + " bits"), 2 ** -bits, "");
  for (let i = 3; i < data.length; i += 3) {
    const p = number(data.slice(i + 1, i + 3)) / 4095, bar = document.createElement("u");
    bar.style.width = Math.max(100 * p, 1) + "%";
    row("code", names[data[i]], bar, p, names[data[i]] === name ? "actual" : "");
  }
  const maxLeft = document.documentElement.clientWidth - tip.offsetWidth - 8;
  const above = box.bottom + 6 + tip.offsetHeight > innerHeight;
  tip.style.left = Math.max(8, Math.min(box.left, maxLeft)) + scrollX + "px";
  tip.style.top = (above ? box.top - 6 - tip.offsetHeight : box.bottom + 6) + scrollY + "px";
}
for (const kind of ["mouseover", "click", "mouseleave"]) main.addEventListener(kind, show);
