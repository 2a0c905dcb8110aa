// What network servers offer a codec beside the language itself: `console` and `Buffer`, as far as codecs use them.
// Ours, written against Node's documentation of Buffer. `__printed` is read by the worker.
var __printed = "";
(function (global) {
  "use strict";
  function shown(value) {
    if (typeof value === "string") return value;
    try {
      var text = JSON.stringify(value);
      return text === undefined ? String(value) : text;
    } catch (error) {
      return String(value);
    }
  }
  function print() {
    if (__printed.length < 2000) __printed += Array.prototype.map.call(arguments, shown).join(" ").slice(0, 500) + "\n";
  }
  global.console = {log: print, info: print, debug: print, warn: print, error: print, trace: print};
})(globalThis);
