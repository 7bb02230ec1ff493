;; Asks for random bytes in each frame of a recursion, once the frames above have returned.
(module
  (import "wasi_snapshot_preview1" "random_get"
    (func $random (param i32 i32) (result i32)))
  (memory (export "memory") 2)
  (func $recurse (param $frames i32)
    (if (local.get $frames)
      (then (call $recurse (i32.sub (local.get $frames) (i32.const 1)))))
    (drop (call $random (i32.const 65536) (i32.const 65536)))
    (drop (call $random (i32.const 65536) (i32.const 65536)))
    (drop (call $random (i32.const 65536) (i32.const 65536)))
    (drop (call $random (i32.const 65536) (i32.const 65536)))
    (drop (call $random (i32.const 65536) (i32.const 65536)))
    (drop (call $random (i32.const 65536) (i32.const 65536)))
    (drop (call $random (i32.const 65536) (i32.const 65536)))
    (drop (call $random (i32.const 65536) (i32.const 65536)))
  )
  (func (export "_start")
    (loop $again
      (call $recurse (i32.const 1500))
      (br $again))))
