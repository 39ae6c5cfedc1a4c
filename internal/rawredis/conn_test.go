package rawredis_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/alicebob/miniredis/v2"

	"github.com/kvtier/kvtier/internal/rawredis"
)

// The yardstick must move the right bytes, or its speed says nothing.
func TestMovesTheRightBytes(t *testing.T) {
	m := miniredis.RunT(t)
	for _, conns := range []int{1, 2, 3} {
		c, err := rawredis.Open("tcp", m.Addr(), conns)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		var keys []string
		var values, bufs [][]byte
		for i := range 7 {
			keys = append(keys, fmt.Sprint("k", i))
			values = append(values, bytes.Repeat([]byte{byte('a' + i)}, i*1500))
			bufs = append(bufs, make([]byte, 10000))
		}
		if err := c.Set(keys, values, 2*conns); err != nil {
			t.Fatal(err)
		}
		n, err := c.Get(keys, bufs, 2*conns)
		if err != nil || n != 21*1500 {
			t.Fatalf("Get = %d, %v", n, err)
		}
		for i := range keys {
			if !bytes.Equal(bufs[i][:len(values[i])], values[i]) {
				t.Errorf("%d connections, value %d differs", conns, i)
			}
		}
	}
	c, err := rawredis.Dial("tcp", m.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if n, err := c.Exists([]string{"k0", "k1", "none"}); n != 2 || err != nil {
		t.Errorf("Exists = %d, %v", n, err)
	}
	if _, err := c.Get([]string{"none"}, [][]byte{nil}, 1); err == nil {
		t.Error("a missing value is no error")
	}
}
