%% An echo server in Erlang. Each connection has a process, which receives bytes as messages.
-module(echo).
-export([main/1]).

main([Address]) ->
    [Host, Port] = string:split(Address, ":"),
    {ok, Ip} = inet:parse_address(Host),
    {ok, Listen} = gen_tcp:listen(list_to_integer(Port), [
        binary, {ip, Ip}, {active, false}, {nodelay, true}, {backlog, 4096}, {reuseaddr, true}
    ]),
    accept(Listen).

accept(Listen) ->
    {ok, Socket} = gen_tcp:accept(Listen),
    Pid = spawn(fun() -> receive go -> serve(Socket) end end),
    ok = gen_tcp:controlling_process(Socket, Pid),
    Pid ! go,
    accept(Listen).

serve(Socket) ->
    inet:setopts(Socket, [{active, once}]),
    receive
        {tcp, Socket, Bytes} ->
            gen_tcp:send(Socket, Bytes),
            serve(Socket);
        {tcp_closed, Socket} ->
            ok;
        {tcp_error, Socket, _} ->
            gen_tcp:close(Socket)
    end.
