// This program echoes each line that the client sends.
//
// It reads from the client on standard input, and writes to it on standard output. "quit" ends the
// connection. A line of more than 4,096 bytes also ends it, after an error message.
package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
)

// maxLine is the maximum length of a line in bytes, without the "\n" at its end.
const maxLine = 4096

func main() {
	if err := serve(os.Stdin, os.Stdout); err != nil {
		// The host logs standard error.
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// serve answers each line as soon as it is complete. Output is not buffered, so it needs no flush.
func serve(in io.Reader, out io.Writer) error {
	// The buffer has room for a line of the maximum length and its "\n". If it is full and contains
	// no "\n", the line is too long.
	lines := bufio.NewReaderSize(in, maxLine+1)
	for {
		line, err := lines.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			_, err = fmt.Fprintf(out, "error: a line may have at most %d bytes\n", maxLine)
			return err
		case errors.Is(err, io.EOF):
			// The last line has no "\n".
			_, err = out.Write(line)
			return err
		case err != nil:
			return err
		case string(bytes.Trim(line, " \t\n\f\r")) == "quit":
			return nil
		}
		if _, err := out.Write(line); err != nil {
			return err
		}
	}
}
