// An echo server for Node.js: pipes each socket into itself.
import net from "node:net";

const [host, port] = process.argv[2].split(":");
const server = net.createServer({ noDelay: true }, (socket) => {
  socket.on("error", () => socket.destroy());
  socket.pipe(socket);
});
server.listen({ host, port: Number(port), backlog: 4096 });
