;; Writes 1,024 empty buffers in each call, without end.
(module
  (import "wasi_snapshot_preview1" "fd_write"
    (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (func (export "_start")
    (loop $again
      (drop (call $write (i32.const 1) (i32.const 1024) (i32.const 1024) (i32.const 16)))
      (br $again))))
