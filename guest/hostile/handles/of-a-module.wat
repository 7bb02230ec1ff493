;; Waits for 50 clocks at once, and once it has read a byte for 900, as a module for WASI preview 1:
;; each clock is two handles for as long as the call takes.
(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 3)
  (data (i32.const 0) "\20\00\00\00\05\00\00\00")
  (data (i32.const 32) "waits")
  (func $wait (param $clocks i32)
    (if (call $poll (i32.const 0x10000) (i32.const 0x20000) (local.get $clocks) (i32.const 16))
      (then (unreachable)))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16))))
  (func (export "_start")
    (call $wait (i32.const 50))
    (i32.store (i32.const 4) (i32.const 1))
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 16)))
    (call $wait (i32.const 900))))
