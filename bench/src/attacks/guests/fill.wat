;; Fills a memory of 1 GiB by one instruction, without end.
(module
  (memory (export "memory") 16383)
  (func (export "_start") (local $byte i32)
    (loop $again
      (local.set $byte (i32.add (local.get $byte) (i32.const 1)))
      (memory.fill (i32.const 0) (local.get $byte) (i32.const 1073676288))
      (br $again))))
