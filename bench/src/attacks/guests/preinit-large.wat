;; A program whose initialisation at its load leaves 300 MiB of bytes other than 0.
(module
  (memory (export "memory") 4800)
  (func (export "_start"))
  (func (export "wizer-initialize")
    (memory.fill (i32.const 0) (i32.const 1) (i32.const 314572800))))
