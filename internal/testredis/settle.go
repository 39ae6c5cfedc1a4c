package testredis

import (
	"net"
	"os"
	"os/exec"
	"strings"
)

// settle gives testcontainers the settings that it needs on machines which reach no image registry or look like a container
// themselves, so that plain go test works there too. What is set in the environment already stays.
func settle() {
	set := func(name, value string) {
		if _, ok := os.LookupEnv(name); !ok {
			_ = os.Setenv(name, value) // fails for malformed names only
		}
	}
	// The reaper is an image of its own. Where it is not there yet it would have to be pulled; tests remove their containers anyway.
	if out, err := exec.Command("docker", "image", "ls", "-q", "testcontainers/ryuk").Output(); err == nil && strings.TrimSpace(string(out)) == "" {
		set("TESTCONTAINERS_RYUK_DISABLED", "true")
	}
	// In a container, testcontainers dials the engine's gateway. If that is an interface of this machine, the engine runs here, and ports are
	// published on loopback.
	if _, err := os.Stat("/.dockerenv"); err == nil {
		if _, err := net.InterfaceByName("docker0"); err == nil {
			set("TESTCONTAINERS_HOST_OVERRIDE", "127.0.0.1")
		}
	}
}
