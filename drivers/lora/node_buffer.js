// Node's Buffer, as far as codecs use it. Ours, written against Node's documentation; loaded for programs that name it.
(function (global) {
  "use strict";
  var BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

  function fromText(text, encoding) {
    var bytes = [], i, code;
    switch (String(encoding || "utf8").toLowerCase()) {
      case "hex":
        for (i = 0; i + 1 < text.length; i += 2) {
          if (!/^[0-9a-fA-F]{2}$/.test(text.substr(i, 2))) break;
          bytes.push(parseInt(text.substr(i, 2), 16));
        }
        return bytes;
      case "base64": case "base64url":
        var bits = 0, held = 0;
        for (i = 0; i < text.length; i++) {
          code = BASE64.indexOf(text[i] === "-" ? "+" : text[i] === "_" ? "/" : text[i]);
          if (code < 0) continue;
          held = (held << 6 | code) & 0xffff;
          bits += 6;
          if (bits >= 8) bytes.push(held >> (bits -= 8) & 255);
        }
        return bytes;
      case "ascii": case "latin1": case "binary":
        for (i = 0; i < text.length; i++) bytes.push(text.charCodeAt(i) & 255);
        return bytes;
      case "utf8": case "utf-8":
        for (var sign of text) {
          code = sign.codePointAt(0);
          if (code >= 0xd800 && code < 0xe000) code = 0xfffd;
          if (code < 0x80) bytes.push(code);
          else if (code < 0x800) bytes.push(0xc0 | code >> 6, 0x80 | code & 63);
          else if (code < 0x10000) bytes.push(0xe0 | code >> 12, 0x80 | code >> 6 & 63, 0x80 | code & 63);
          else bytes.push(0xf0 | code >> 18, 0x80 | code >> 12 & 63, 0x80 | code >> 6 & 63, 0x80 | code & 63);
        }
        return bytes;
    }
    throw new TypeError("Unknown encoding: " + encoding);
  }

  function utf8(bytes) {
    var text = "", i = 0;
    while (i < bytes.length) {
      var first = bytes[i], more = first < 0x80 ? 0 : first >= 0xc2 && first < 0xe0 ? 1 : first >= 0xe0 && first < 0xf0 ? 2
        : first >= 0xf0 && first < 0xf5 ? 3 : -1;
      var code = more === 0 ? first : first & (0x3f >> more), n = 1;
      while (n <= more && (bytes[i + n] & 0xc0) === 0x80) code = code << 6 | bytes[i + n++] & 63;
      var whole = more >= 0 && n === more + 1 && !(more === 2 && (code < 0x800 || code >= 0xd800 && code < 0xe000))
        && !(more === 3 && (code < 0x10000 || code > 0x10ffff));
      text += whole ? String.fromCodePoint(code) : "\ufffd";
      i += whole ? n : 1;
    }
    return text;
  }

  function toText(bytes, encoding) {
    var text = "", i;
    switch (String(encoding || "utf8").toLowerCase()) {
      case "hex":
        for (i = 0; i < bytes.length; i++) text += (bytes[i] + 256).toString(16).slice(1);
        return text;
      case "base64":
        for (i = 0; i < bytes.length; i += 3) {
          var three = bytes[i] << 16 | (bytes[i + 1] || 0) << 8 | (bytes[i + 2] || 0);
          text += BASE64[three >> 18] + BASE64[three >> 12 & 63] + (i + 1 < bytes.length ? BASE64[three >> 6 & 63] : "=")
            + (i + 2 < bytes.length ? BASE64[three & 63] : "=");
        }
        return text;
      case "ascii":
        for (i = 0; i < bytes.length; i++) text += String.fromCharCode(bytes[i] & 127);
        return text;
      case "latin1": case "binary":
        for (i = 0; i < bytes.length; i++) text += String.fromCharCode(bytes[i]);
        return text;
      case "utf8": case "utf-8":
        return utf8(bytes);
    }
    throw new TypeError("Unknown encoding: " + encoding);
  }

  function made(bytes) {
    var buffer = bytes instanceof ArrayBuffer ? new Uint8Array(bytes) : Uint8Array.from(bytes, function (b) { return b & 255; });
    return Object.setPrototypeOf(buffer, Buffer.prototype);
  }

  function Buffer(value, encoding, length) {
    return typeof value === "number" ? Buffer.alloc(value) : Buffer.from(value, encoding, length);
  }
  Buffer.prototype = Object.create(Uint8Array.prototype, {constructor: {value: Buffer, writable: true, configurable: true}});

  Buffer.from = function (value, encoding, length) {
    if (typeof value === "string") return made(fromText(value, encoding));
    if (value instanceof ArrayBuffer) return Object.setPrototypeOf(new Uint8Array(value, encoding, length), Buffer.prototype);
    if (value && value.type === "Buffer" && Array.isArray(value.data)) return made(value.data);
    if (value && typeof value.length === "number") return made(Array.prototype.slice.call(value));
    throw new TypeError("The first argument must be a string, an array or a buffer");
  };
  Buffer.alloc = function (size, fill, encoding) {
    var buffer = Object.setPrototypeOf(new Uint8Array(size), Buffer.prototype);
    return fill === undefined ? buffer : buffer.fill(fill, encoding);
  };
  Buffer.allocUnsafe = Buffer.allocUnsafeSlow = function (size) { return Buffer.alloc(size); };
  Buffer.isBuffer = function (value) { return value instanceof Buffer; };
  Buffer.isEncoding = function (name) { return /^(utf-?8|hex|base64|base64url|ascii|latin1|binary)$/i.test(String(name)); };
  Buffer.byteLength = function (text, encoding) {
    return typeof text === "string" ? fromText(text, encoding).length : text.byteLength;
  };
  Buffer.concat = function (list, total) {
    var bytes = [];
    list.forEach(function (one) { bytes.push.apply(bytes, one); });
    if (total !== undefined) while (bytes.length < total) bytes.push(0);
    return made(total === undefined ? bytes : bytes.slice(0, total));
  };
  Buffer.compare = function (a, b) {
    for (var i = 0; i < a.length && i < b.length; i++) if (a[i] !== b[i]) return a[i] < b[i] ? -1 : 1;
    return a.length === b.length ? 0 : a.length < b.length ? -1 : 1;
  };

  var proto = Buffer.prototype;
  function method(name, work) {
    Object.defineProperty(proto, name, {value: work, writable: true, configurable: true});
  }
  method("toString", function (encoding, start, end) {
    return toText(Uint8Array.prototype.slice.call(this, start || 0, end === undefined ? this.length : end), encoding);
  });
  method("toJSON", function () { return {type: "Buffer", data: Array.from(this)}; });
  method("equals", function (other) { return Buffer.compare(this, other) === 0; });
  method("compare", function (other) { return Buffer.compare(this, other); });
  method("subarray", function (start, end) {
    var part = new Uint8Array(this.buffer, this.byteOffset, this.length).subarray(start, end);
    return Object.setPrototypeOf(part, Buffer.prototype);
  });
  method("slice", function (start, end) { return this.subarray(start, end); }); // Node's shares memory, unlike Uint8Array's
  method("fill", function (value, encoding) {
    if (typeof value !== "string") return Uint8Array.prototype.fill.call(this, value & 255);
    var bytes = fromText(value, encoding);
    for (var i = 0; i < this.length && bytes.length; i++) this[i] = bytes[i % bytes.length];
    return this;
  });
  method("copy", function (target, at, start, end) {
    var part = this.subarray(start || 0, end === undefined ? this.length : end);
    part = part.subarray(0, target.length - (at || 0));
    target.set(part, at || 0);
    return part.length;
  });
  method("write", function (text, offset, length, encoding) {
    if (typeof offset === "string") { encoding = offset; offset = 0; length = undefined; }
    else if (typeof length === "string") { encoding = length; length = undefined; }
    var bytes = fromText(text, encoding), at = offset || 0;
    bytes = bytes.slice(0, Math.min(this.length - at, length === undefined ? Infinity : length));
    this.set(bytes, at);
    return bytes.length;
  });
  function needle(value, encoding) {
    return typeof value === "number" ? [value & 255] : typeof value === "string" ? fromText(value, encoding) : value;
  }
  method("indexOf", function (value, from, encoding) {
    var wanted = needle(value, typeof from === "string" ? from : encoding);
    for (var i = typeof from === "number" ? from : 0; i + wanted.length <= this.length; i++) {
      var n = 0;
      while (n < wanted.length && this[i + n] === wanted[n]) n++;
      if (n === wanted.length) return i;
    }
    return -1;
  });
  method("includes", function (value, from, encoding) { return this.indexOf(value, from, encoding) >= 0; });

  // A number that does not lie wholly inside is an error, as in Node: it must not be read as something.
  function outside(buffer, offset, size) {
    if (typeof offset !== "number" || offset % 1 !== 0) throw new TypeError("The offset must be a whole number");
    if (offset < 0 || offset + size > buffer.length) throw new RangeError("Attempt to access memory outside buffer bounds");
  }
  function view(buffer) { return new DataView(buffer.buffer, buffer.byteOffset, buffer.length); }
  function pair(names, size, getter, setter) {
    ["BE", "LE"].forEach(function (order) {
      names.forEach(function (name) {
        var suffix = size === 1 ? "" : order;
        method("read" + name + suffix, function (offset) {
          outside(this, offset = offset || 0, size);
          return view(this)[getter](offset, order === "LE");
        });
        method("write" + name + suffix, function (value, offset) {
          outside(this, offset = offset || 0, size);
          view(this)[setter](offset, value, order === "LE");
          return offset + size;
        });
      });
    });
  }
  pair(["UInt8", "Uint8"], 1, "getUint8", "setUint8");
  pair(["Int8"], 1, "getInt8", "setInt8");
  pair(["UInt16", "Uint16"], 2, "getUint16", "setUint16");
  pair(["Int16"], 2, "getInt16", "setInt16");
  pair(["UInt32", "Uint32"], 4, "getUint32", "setUint32");
  pair(["Int32"], 4, "getInt32", "setInt32");
  pair(["Float"], 4, "getFloat32", "setFloat32");
  pair(["Double"], 8, "getFloat64", "setFloat64");
  pair(["BigUInt64", "BigUint64"], 8, "getBigUint64", "setBigUint64");
  pair(["BigInt64"], 8, "getBigInt64", "setBigInt64");
  ["BE", "LE"].forEach(function (order) {
    function unsigned(buffer, offset, size) {
      if (!(size >= 1 && size <= 6)) throw new RangeError("1 to 6 bytes can be read as a number");
      outside(buffer, offset, size);
      for (var value = 0, i = 0; i < size; i++) value = value * 256 + buffer[order === "BE" ? offset + i : offset + size - 1 - i];
      return value;
    }
    ["UInt", "Uint"].forEach(function (name) {
      method("read" + name + order, function (offset, size) { return unsigned(this, offset, size); });
    });
    method("readInt" + order, function (offset, size) {
      var value = unsigned(this, offset, size), limit = Math.pow(2, 8 * size);
      return value >= limit / 2 ? value - limit : value;
    });
  });
  global.Buffer = Buffer;
})(globalThis);
