package redisstore_test

import (
	"bufio"
	"fmt"
	"io"
	"strings"
)

// commandOf reads one command, as a server does, and returns its name in lower case.
func commandOf(r *bufio.Reader) (name string, err error) {
	var n int
	if _, err := fmt.Fscanf(r, "*%d\r\n", &n); err != nil {
		return "", err
	}
	for i := range n {
		var size int
		if _, err := fmt.Fscanf(r, "$%d\r\n", &size); err != nil {
			return "", err
		}
		arg := make([]byte, size+2)
		if _, err := io.ReadFull(r, arg); err != nil {
			return "", err
		}
		if i == 0 {
			name = strings.ToLower(string(arg[:size]))
		}
	}
	return name, nil
}
