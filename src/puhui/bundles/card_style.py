"""The style of a card's page: one sheet for light, dark, phone and paper, with a language switch and no script.

Both languages are in the page; the switch is a pair of radio buttons, and what is not chosen is not displayed.
"""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--paper:#fbfbf9;--ink:#1c2225;--soft:#5b666b;--line:#dfe2de;--tint:#eef3f0;
--accent:#0a6c5d;--wash:#0a6c5d14;--warn:#a8480f;--grey:#98a3a6}
@media (prefers-color-scheme:dark){:root{--paper:#121618;--ink:#e4e9e8;--soft:#9aa6aa;--line:#2b3336;--tint:#1a2123;
--accent:#58c9b2;--wash:#58c9b21c;--warn:#eb9a5f;--grey:#66747a}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--paper);color:var(--ink);font:1rem/1.6 system-ui,-apple-system,"Segoe UI",Roboto,
"PingFang SC","Hiragino Sans GB","Microsoft YaHei","Noto Sans CJK SC","Noto Sans SC",sans-serif;
font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
header,main,footer{max-width:66rem;margin:0 auto;padding:0 1.25rem}
#en:checked~* [lang=zh],#zh:checked~* [lang=en]{display:none}
.pick{position:absolute;opacity:0;width:1px;height:1px}
.top{display:flex;justify-content:space-between;align-items:baseline;gap:1rem;padding:1.5rem 0 0;color:var(--soft);
font-size:.8125rem}
.top b{font-weight:600;color:var(--ink);letter-spacing:.01em}
.top label{padding:.5rem .4rem;cursor:pointer}
#en:checked~header label[for=en],#zh:checked~header label[for=zh]{
color:var(--ink);box-shadow:inset 0 -2px var(--accent)}
#en:focus-visible~header label[for=en],#zh:focus-visible~header label[for=zh]{outline:2px solid var(--accent)}
h1{font-size:clamp(1.6rem,1.1rem + 2.2vw,2.6rem);line-height:1.2;letter-spacing:-.015em;font-weight:640;
margin:2.25rem 0 .75rem;text-wrap:balance}
.lead{font-size:1.125rem;line-height:1.55;max-width:44rem;margin:0;color:var(--soft);text-wrap:pretty}
.keys{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));gap:1px;margin:2.25rem 0 0;padding:0;
background:var(--line);border:1px solid var(--line);border-radius:.6rem;overflow:hidden}
.keys a{background:var(--paper);padding:.9rem 1rem .8rem;color:inherit;text-decoration:none;display:block}
.keys a:hover{background:var(--tint)}
.keys b{display:block;font-size:1.5rem;line-height:1.25;font-weight:620;letter-spacing:-.01em;white-space:nowrap}
.keys .main b{color:var(--accent)}
.keys span{font-size:.8125rem;line-height:1.4;color:var(--soft);display:block}
.keys span[lang]{display:block}
section{border-top:1px solid var(--line);margin-top:3rem;padding-top:1.5rem}
h2{font-size:1.0625rem;line-height:1.35;font-weight:640;margin:0 0 1rem}
h3{font-size:.875rem;font-weight:640;margin:1.75rem 0 .5rem}
p,ul{margin:0 0 .85rem;max-width:46rem}
ul{padding-left:1.1rem}li{margin:.2rem 0}li::marker{color:var(--grey)}
.first{font-size:1.1875rem;line-height:1.5}
.soft,caption,.why{color:var(--soft);font-size:.875rem}
.why{font-weight:400;font-size:.8125rem;line-height:1.4;display:block;margin-top:.1rem}
.share{display:flex;height:.9rem;gap:2px;margin:1.4rem 0 .6rem;border-radius:.3rem;overflow:hidden}
.share i{display:block;min-width:3px}
.i-ok{background:var(--accent)}.i-no{background:var(--warn)}.i-big{background:var(--grey);opacity:.45}
.legend{display:flex;flex-wrap:wrap;gap:.25rem 1.5rem;list-style:none;padding:0;font-size:.875rem;color:var(--soft)}
.legend i{display:inline-block;width:.7rem;height:.7rem;border-radius:.15rem;margin-right:.45rem}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr));
gap:1.5rem 2.5rem;align-items:start}
figure{margin:.5rem 0 1rem;max-width:34rem;min-width:0}
figcaption{font-size:.875rem;color:var(--soft);margin-top:.4rem}
svg{display:block;width:100%;height:auto;font-family:inherit;overflow:visible}
svg text{font-size:11px;fill:var(--ink)}
svg .tick,svg .name,svg .hint{fill:var(--soft)}
svg .label{paint-order:stroke;stroke:var(--paper);stroke-width:3px;stroke-linejoin:round}
.grid,.axis,.front,.diagonal,.curve,.span,.edge{fill:none;stroke:var(--line)}
.leader{fill:none;stroke:var(--grey);stroke-width:.75}
.axis{stroke:var(--grey)}.front{stroke:var(--accent);stroke-width:1.5;opacity:.55}
.diagonal,.edge{stroke:var(--grey);stroke-dasharray:4 4}.curve{stroke:var(--accent);stroke-width:1.5}
.span{stroke:var(--accent);stroke-width:5;opacity:.28;stroke-linecap:round}
.bin,.chosen{fill:var(--accent)}.best{fill:var(--ink)}.other{fill:var(--grey)}
.ring{fill:none;stroke:var(--accent);stroke-width:1.5}.alone{fill:var(--wash)}.edge{stroke:var(--accent)}
.wide{overflow-x:auto;margin:0 0 1rem}
table{border-collapse:collapse;width:100%;font-size:.875rem;line-height:1.45}
caption{text-align:left;padding-bottom:.4rem}
th,td{padding:.5rem .9rem .5rem 0;border-bottom:1px solid var(--line);text-align:left;vertical-align:top;
font-weight:400}
thead th{color:var(--soft);font-size:.8125rem;vertical-align:bottom;white-space:nowrap}
td.n,th.n{text-align:right;white-space:nowrap}th:last-child,td:last-child{padding-right:.25rem}
tbody th{min-width:9rem}tr.on th,tr.on td{background:var(--wash)}tr.on th{box-shadow:inset 3px 0 var(--accent);
padding-left:.75rem}tr.on b{color:var(--accent)}
.bar{display:block;height:.25rem;margin-top:.35rem;background:var(--warn);opacity:.7;border-radius:.15rem;min-width:2px}
.range{color:var(--soft);display:inline-block;min-width:6.5rem}
.swap{color:var(--soft);padding:0 .35rem}
dl{display:grid;grid-template-columns:minmax(7rem,auto) 1fr;gap:.4rem 1.5rem;margin:0 0 1rem;font-size:.9375rem}
dt{color:var(--soft)}dd{margin:0;min-width:0}
code,pre{font:.8125rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
pre{white-space:pre-wrap;background:var(--tint);border-radius:.4rem;padding:.75rem .9rem;margin:.25rem 0 1rem}
.again{display:grid;grid-template-columns:auto 1fr;gap:.75rem;align-items:baseline;font-size:.8125rem;color:var(--soft);
margin:1.1rem 0 0;max-width:none}
.again code{background:var(--tint);border-radius:.3rem;padding:.25rem .55rem;color:var(--ink);user-select:all}
.again code span{display:inline-block;max-width:100%}
.labels{display:flex;flex-wrap:wrap;gap:.35rem;list-style:none;padding:0;margin:.6rem 0 1rem;max-width:none}
.labels li{margin:0;padding:.05rem .5rem;background:var(--tint);border-radius:.3rem;font-size:.8125rem}
summary{cursor:pointer;font-size:.875rem;color:var(--accent);padding:.4rem 0}
summary:focus-visible,a:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
footer{margin:3.5rem auto 2.5rem;color:var(--soft);font-size:.8125rem}
@media (min-width:60rem){section{display:grid;grid-template-columns:12.5rem minmax(0,1fr);gap:0 2.5rem}
section>h2{margin:0}section>h2+div{grid-column:2}}
@media (max-width:36rem){.many tr{display:grid;grid-template-columns:repeat(var(--n),minmax(0,1fr));gap:0 .5rem;
padding:.5rem 0;
border-bottom:1px solid var(--line)}.many th,.many td{border:0;padding:.1rem 0;text-align:left}.many th[scope=row],
.many thead th:first-child{grid-column:1/-1}.many tr.on{background:var(--wash);padding-left:.75rem;
box-shadow:inset 3px 0 var(--accent)}.many tr.on th,.many tr.on td{background:none;box-shadow:none;padding-left:0}
.many thead th{white-space:normal;align-self:end}.many td.n{color:var(--soft);white-space:normal}}
@media (max-width:30rem){dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.6rem}th,td{padding-right:.6rem}
tbody th{min-width:7.5rem}.keys{grid-template-columns:1fr 1fr}.keys b{font-size:1.3rem}
.again{grid-template-columns:1fr;gap:.25rem}
.keys a:last-child:nth-child(odd){grid-column:1/-1}}
@media print{:root{color-scheme:light;--paper:#fff;--ink:#000;--soft:#444;--line:#ccc;--tint:#f3f3f3;--accent:#0a6c5d;
--wash:#0a6c5d14;--warn:#a8480f;--grey:#888}body{font-size:10pt}header,main,footer{max-width:none;padding:0}
.top label{display:none}h2,h3,summary{break-after:avoid}figure,tr,.keys,.again{break-inside:avoid}
details::details-content{content-visibility:visible;block-size:auto}section{margin-top:1.5rem;padding-top:1rem}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
"""
