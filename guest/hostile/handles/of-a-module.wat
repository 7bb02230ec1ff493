;; Waits for 50 clocks at once, and then for 900, as a module for WASI preview 1: each is two handles
;; for as long as the call takes.
(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 3)
  (data (i32.const 0) "\08\00\00\00\05\00\00\00waits")
  (func $wait (param $clocks i32)
    (if (call $poll (i32.const 0x10000) (i32.const 0x20000) (local.get $clocks) (i32.const 16))
      (then (unreachable)))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16))))
  (func (export "_start")
    (call $wait (i32.const 50))
    (call $wait (i32.const 900))))
