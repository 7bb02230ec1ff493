// An echo service for nginx: what comes from the client is sent back as if the upstream had sent it.
function echo(s) {
  s.on("upload", (data, flags) => {
    if (data.length > 0) {
      s.send(data, { from_upstream: true, flush: true });
    }
    if (flags.last) {
      s.send("", { from_upstream: true, last: true });
    }
  });
}

// What an upstream that says nothing does.
function hold(s) {
  s.on("upload", () => {});
}

export default { echo, hold };
