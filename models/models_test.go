package models_test

import (
	"io"
	"testing"

	"github.com/kvtier/kvtier/models"
)

func TestFiles(t *testing.T) {
	for _, name := range []string{models.Default, models.Previous} {
		f, err := models.FS.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, ok := f.(io.ReaderAt); !ok {
			t.Errorf("%s cannot be read at an offset", name)
		}
	}
}
