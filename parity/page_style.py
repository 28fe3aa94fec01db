"""How the parity report looks, in the light and in the dark."""

STYLE = """
:root{color-scheme:light dark;--line:#d0d7de;--dim:#57606a;--good:#1a7f37;--bad:#d1242f;
--paper:#fff;--soft:#f6f8fa}
@media(prefers-color-scheme:dark){:root{--line:#3d444d;--dim:#9198a1;--good:#3fb950;--bad:#f85149;
--paper:#0d1117;--soft:#161b22}}
body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2rem auto;padding:0 1rem;
background:var(--paper)}
h1{font-size:1.5rem;margin:0}h2{font-size:1.05rem;margin:1.6rem 0 .4rem}
.note{color:var(--dim);margin:.3rem 0 1rem;overflow-wrap:anywhere}
.verdict{border-left:4px solid;padding:.5rem .9rem;margin:1rem 0;background:var(--soft)}
.verdict ul{margin:.2rem 0;padding-left:1.2rem}
.verdict.good{border-color:var(--good)}.verdict.bad{border-color:var(--bad)}
.verdict b,td.good,td.bad{font-weight:600}
.good>b,td.good{color:var(--good)}.bad>b,td.bad{color:var(--bad)}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .6rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th[scope=row]{text-align:left;font-weight:400;white-space:normal}
th i,.legend i{display:inline-block;width:.7rem;height:.7rem;margin-right:.4rem;border-radius:2px}
dl{margin:1rem 0}dl div{display:flex;gap:.8rem}
dt{flex:0 0 9rem;font-weight:600}dd{margin:0!important}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:0 2rem}
section{min-width:0}
svg{width:100%;height:auto;font:12px system-ui,sans-serif;fill:currentColor}
.grid{stroke:var(--line);stroke-width:1;fill:none}.line{fill:none;stroke-width:2}
.mid{text-anchor:middle}.end{text-anchor:end}
.legend{color:var(--dim);margin:.2rem 0 0}.legend span{margin-right:1rem;white-space:nowrap}
pre{overflow-x:auto;background:var(--soft);padding:.8rem}
summary{cursor:pointer;margin-top:2rem}
"""
