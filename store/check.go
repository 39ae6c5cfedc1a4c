package store

import (
	"fmt"
	"time"
)

// CheckPut is what every back end asks before it stores anything: it returns ErrInvalid for a ttl that is not positive or a
// key longer than MaxKeyBytes, ErrTooLarge for a value longer than MaxValueBytes, and the key at fault.
func CheckPut(items []Item, ttl time.Duration) (key string, err error) {
	if ttl <= 0 {
		return "", fmt.Errorf("%w: ttl %v is not positive", ErrInvalid, ttl)
	}
	for i := range items {
		switch it := &items[i]; {
		case len(it.Key) > MaxKeyBytes:
			return it.Key[:64], fmt.Errorf("%w: key of %d bytes, at most %d", ErrInvalid, len(it.Key), MaxKeyBytes)
		case len(it.Value) > MaxValueBytes:
			return it.Key, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(it.Value), MaxValueBytes)
		}
	}
	return "", nil
}

// CheckGet is what every back end asks before it reads anything: it returns ErrInvalid unless each key has a buffer.
func CheckGet(keys []string, bufs [][]byte) error {
	if len(keys) != len(bufs) {
		return fmt.Errorf("%w: %d keys and %d buffers", ErrInvalid, len(keys), len(bufs))
	}
	return nil
}

// CheckLease is what every Leaser asks first: it returns ErrInvalid for what no store grants.
func CheckLease(key, note string, ttl time.Duration) error {
	switch {
	case ttl < time.Millisecond || ttl > MaxLease:
		return fmt.Errorf("%w: lease of %v, want 1ms to %v", ErrInvalid, ttl, MaxLease)
	case key == "" || len(key) > MaxKeyBytes:
		return fmt.Errorf("%w: key of %d bytes, want 1 to %d", ErrInvalid, len(key), MaxKeyBytes)
	case len(note) > MaxKeyBytes:
		return fmt.Errorf("%w: note of %d bytes, at most %d", ErrInvalid, len(note), MaxKeyBytes)
	}
	return nil
}
