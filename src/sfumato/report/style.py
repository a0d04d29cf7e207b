"""The style sheet of the report: warm paper, one accent, dark mode, phones, print."""

from __future__ import annotations

CSS = """
:root {
  --paper: #faf8f4; --sheet: #fff; --ink: #2b2723; --soft: #756d64; --line: #e4ded5;
  --accent: #8c4a2f; --tint: #f3ede4; --alert: #a3341f; --alert-tint: #fbeae5;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #1b1917; --sheet: #24211e; --ink: #ebe5dc; --soft: #a39a8e; --line: #3a352f;
    --accent: #dd9a75; --tint: #2c2824; --alert: #f0947f; --alert-tint: #3b2520;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 3rem 1.25rem 5rem; max-width: 60rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
header { margin-bottom: 1.5rem; }
.kind {
  margin: 0; color: var(--accent); font-size: .78rem; font-weight: 600;
  letter-spacing: .12em; text-transform: uppercase;
}
h1, h2 { font-family: Georgia, "Iowan Old Style", "Times New Roman", serif; font-weight: 500; }
h1 {
  margin: .2rem 0 0; font-size: clamp(1.9rem, 6vw, 2.9rem); line-height: 1.15;
  letter-spacing: -.01em; overflow-wrap: anywhere;
}
.subtitle { margin: .6rem 0 0; color: var(--soft); font-size: 1.08rem; max-width: 44rem; }
nav {
  display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: .7rem 0;
  border-block: 1px solid var(--line); font-size: .88rem;
}
nav a { color: var(--soft); text-decoration: none; }
nav a:hover, nav a:focus-visible { color: var(--accent); text-decoration: underline; }
main { margin-top: 1.5rem; }
section { margin-top: 3rem; }
h2 { margin: 0 0 .6rem; font-size: 1.5rem; line-height: 1.3; }
p { margin: .6rem 0; max-width: 44rem; }
.cards {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .9rem;
  margin: 1.5rem 0;
}
.card {
  padding: 1rem 1.1rem; background: var(--sheet); border: 1px solid var(--line);
  border-radius: .6rem; break-inside: avoid;
}
.card dt { color: var(--soft); font-size: .82rem; }
.card dd { margin: .15rem 0 0; font-size: 1.6rem; line-height: 1.2; letter-spacing: -.01em;
  font-variant-numeric: tabular-nums; }
.card dd.note { margin-top: .45rem; color: var(--soft); font-size: .82rem; line-height: 1.4;
  letter-spacing: 0; }
.row {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr));
  gap: 1.25rem; align-items: start;
}
figure {
  margin: 1.1rem 0; padding: .9rem; background: var(--sheet); border: 1px solid var(--line);
  border-radius: .6rem; break-inside: avoid;
}
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; border-radius: .2rem; }
figure.paper img { width: 100%; max-width: 48rem; padding: .4rem; background: #fff; }
img.pixels { width: 100%; image-rendering: pixelated; }
figcaption { margin-top: .7rem; color: var(--soft); font-size: .86rem; line-height: 1.45; }
.scroll { overflow-x: auto; margin: 1.1rem 0; }
table { width: 100%; border-collapse: collapse; font-size: .92rem; }
th, td {
  padding: .45rem .9rem .45rem 0; border-bottom: 1px solid var(--line);
  text-align: left; vertical-align: top;
}
th { color: var(--soft); font-weight: 500; font-size: .82rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th.number { white-space: normal; }
tr > :last-child { padding-right: 0; }
.facts { columns: 17rem 2; column-gap: 2.5rem; margin: 1.1rem 0; font-size: .9rem; }
.facts div {
  display: flex; justify-content: space-between; gap: 1rem; padding: .3rem 0;
  border-bottom: 1px solid var(--line); break-inside: avoid;
}
.facts dt { color: var(--soft); flex: none; }
.facts dd { margin: 0; text-align: right; overflow-wrap: anywhere; min-width: 0;
  font-variant-numeric: tabular-nums; }
pre {
  margin: 1.1rem 0; padding: .9rem 1.1rem; overflow-x: auto; background: var(--tint);
  border-radius: .6rem; font: .86rem/1.6 ui-monospace, "SF Mono", Menlo, Consolas, monospace;
}
pre code { font: inherit; }
.remark, .warning { padding: .7rem 1rem; border-radius: .6rem; background: var(--tint); }
.warning { background: var(--alert-tint); border-left: .25rem solid var(--alert); }
@media (max-width: 34rem) {
  body { padding: 1.75rem 1rem 3rem; }
  .cards { grid-template-columns: 1fr 1fr; gap: .6rem; }
  .card { padding: .75rem .8rem; }
  .card dd { font-size: 1.35rem; }
  section { margin-top: 2.25rem; }
}
@media print {
  :root { --paper: #fff; --sheet: #fff; --ink: #000; --soft: #444; --line: #ccc; --tint: #f4f4f4; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  h2 { break-after: avoid; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
}
"""
