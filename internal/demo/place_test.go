package demo

import (
	"os"
	"testing"
)

func TestSweepTakesWhatIsDeadAndLeavesWhatLives(t *testing.T) {
	mine, err := newPlace()
	if err != nil {
		t.Fatal(err)
	}
	defer mine.remove()
	dead, err := newPlace()
	if err != nil {
		t.Fatal(err)
	}
	dead.lock.Close() // as a SIGKILL does
	if _, err := sweep(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(mine.dir); err != nil {
		t.Errorf("a demo that runs lost its directory: %v", err)
	}
	if _, err := os.Stat(dead.dir); !os.IsNotExist(err) {
		t.Errorf("what a killed demo left is still there: %v", err)
	}
}
