// Lines echoes line by line: a program that reads standard input, which is what the peer sends, and writes standard
// output.
//
// "quit" ends the connection. A line of more than 4,096 bytes is answered by an error, which ends it too.
package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
)

// maxLine is the longest line, in bytes before its "\n".
const maxLine = 4096

func main() {
	if err := serve(os.Stdin, os.Stdout); err != nil {
		// Standard error goes to the log of the host.
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// serve answers each line as soon as it is whole. Nothing is between it and out, so nothing needs to be flushed.
func serve(in io.Reader, out io.Writer) error {
	// The buffer has room for the longest line and its end: if it is full and no line ends in it, the line is too long.
	lines := bufio.NewReaderSize(in, maxLine+1)
	for {
		line, err := lines.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			_, err = fmt.Fprintf(out, "error: a line may have %d bytes\n", maxLine)
			return err
		case errors.Is(err, io.EOF):
			// The rest, which has no end of its own.
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
