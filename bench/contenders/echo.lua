-- An echo service for HAProxy: sends back each line that it receives.
core.register_service("echo", "tcp", function(applet)
  while true do
    local bytes = applet:getline()
    if bytes == nil or #bytes == 0 then
      return
    end
    applet:send(bytes)
  end
end)
