package lab

import (
	"fmt"
	"time"
)

// Eventually calls a condition until it returns nil, and returns nil then. When the bound has passed it returns the
// condition's last error. The condition is called at least once, and every few milliseconds.
func Eventually(bound time.Duration, condition func() error) error {
	start := time.Now()
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		err := condition()
		if err == nil {
			return nil
		}
		if time.Since(start) >= bound {
			return fmt.Errorf("not within %v: %w", bound, err)
		}
		time.Sleep(pause)
	}
}
