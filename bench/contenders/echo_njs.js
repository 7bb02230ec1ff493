// An echo service for nginx: sends the client's bytes back to the client, as if the upstream server
// had sent them.
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

// An upstream server that sends nothing.
function hold(s) {
  s.on("upload", () => {});
}

export default { echo, hold };
