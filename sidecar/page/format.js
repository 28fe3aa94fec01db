// Numbers and times, short enough to compare at a glance.

function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
  return [value >= 100 || unit === 0 ? value.toFixed(0) : value.toFixed(1), units[unit]];
}

function size(value) { return bytes(value).join(" "); }

function count(value) {
  if (value < 10000) return String(Math.round(value));
  if (value < 1e6) return (value / 1e3).toFixed(1) + " k";
  if (value < 1e9) return (value / 1e6).toFixed(1) + " M";
  return (value / 1e9).toFixed(1) + " G";
}

function duration(seconds) {
  if (seconds < 0) return "now";
  if (seconds < 90) return Math.round(seconds) + " s";
  if (seconds < 5400) return Math.round(seconds / 60) + " min";
  if (seconds < 172800) return (seconds / 3600).toFixed(1) + " h";
  return Math.round(seconds / 86400) + " d";
}

function ago(at, now) { return now - at < 2 ? "now" : duration(now - at) + " ago"; }

function plural(number, word) { return count(number) + " " + word + (number === 1 ? "" : "s"); }

function versions(list) { return list.length ? list.join(", ") : "–"; }
