;; A program whose allocator calls itself for ever when the host calls it for a list.
(component
  (import "wasi:random/random@0.2.0" (instance $random
    (export "get-random-bytes" (func (param "len" u64) (result (list u8))))))
  (core module $allocates
    (memory (export "memory") 1)
    (func $recurse (param i32) (result i32)
      (i32.add (call $recurse (i32.add (local.get 0) (i32.const 1))) (i32.const 1)))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (call $recurse (i32.const 0))))
  (core instance $allocates (instantiate $allocates))
  (core func $bytes (canon lower (func $random "get-random-bytes")
    (memory (core memory $allocates "memory"))
    (realloc (core func $allocates "realloc"))))
  (core module $runs
    (import "host" "bytes" (func $bytes (param i64 i32)))
    (func (export "run") (result i32)
      (call $bytes (i64.const 8) (i32.const 32))
      (i32.const 0)))
  (core instance $runs (instantiate $runs
    (with "host" (instance (export "bytes" (func $bytes))))))
  (func $run (result (result)) (canon lift (core func $runs "run")))
  (instance $exports (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $exports)))
