;; Writes 65 MB to standard error in each call, without end.
(module
  (import "wasi_snapshot_preview1" "fd_write"
    (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1000)
  (func (export "_start")
    (i32.store (i32.const 16) (i32.const 1024))
    (i32.store (i32.const 20) (i32.const 65000000))
    (loop $again
      (drop (call $write (i32.const 2) (i32.const 16) (i32.const 1) (i32.const 0)))
      (br $again))))
