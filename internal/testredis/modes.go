package testredis

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"
)

// ValkeyImage is the Valkey that tests use besides Redis.
const ValkeyImage = "valkey/valkey:9"

// StartSentinel runs a primary and one sentinel that calls it master in one container, removed when the test ends, and returns their address
// as redis+sentinel://host:port/master and the primary's as host:port. It skips or fails the test when there is no container engine.
func StartSentinel(tb testing.TB) (url, primary string) {
	tb.Helper()
	ports := []string{port(tb), port(tb)}
	script := fmt.Sprintf("%[1]s --save '' --port %[2]s --protected-mode no & "+
		"printf 'port %[3]s\\nprotected-mode no\\nsentinel resolve-hostnames no\\nsentinel monitor master 127.0.0.1 %[2]s 1\\n' >/tmp/sentinel.conf && "+
		"%[1]s /tmp/sentinel.conf --sentinel & wait", serverName(Image()), ports[0], ports[1])
	startScript(tb, Image(), script, ports, nil,
		// Both: the sentinel may be up before the primary, and a published port accepts connections before anybody listens behind it.
		wait.ForAll(wait.ForLog("Ready to accept connections"), wait.ForLog("\\+monitor master").AsRegexp()))
	return "redis+sentinel://127.0.0.1:" + ports[1] + "/master", "127.0.0.1:" + ports[0]
}

// StartFailover is StartSentinel with a replica that the sentinel promotes within seconds once the primary is gone, as after SHUTDOWN.
func StartFailover(tb testing.TB) (url, primary, replica string) {
	tb.Helper()
	ports := []string{port(tb), port(tb), port(tb)}
	script := fmt.Sprintf("%[1]s --save '' --port %[2]s --protected-mode no & "+
		"%[1]s --save '' --port %[3]s --protected-mode no --replicaof 127.0.0.1 %[2]s --repl-diskless-sync-delay 0 & "+
		"printf 'port %[4]s\\nprotected-mode no\\nsentinel monitor master 127.0.0.1 %[2]s 1\\n"+
		"sentinel down-after-milliseconds master 1500\\nsentinel failover-timeout master 6000\\n' >/tmp/sentinel.conf && "+
		"%[1]s /tmp/sentinel.conf --sentinel & wait", serverName(Image()), ports[0], ports[1], ports[2])
	startScript(tb, Image(), script, ports, nil,
		wait.ForAll(wait.ForLog("MASTER <-> REPLICA sync: Finished with success"), wait.ForLog("\\+slave slave").AsRegexp()))
	return "redis+sentinel://127.0.0.1:" + ports[2] + "/master", "127.0.0.1:" + ports[0], "127.0.0.1:" + ports[1]
}

// StartTLS runs a server that speaks nothing but TLS, with a certificate made for this test, and returns its address as host:port and
// what a client needs to trust it.
func StartTLS(tb testing.TB) (addr string, trust *tls.Config) {
	tb.Helper()
	cert, key := certificate(tb)
	p := port(tb)
	script := fmt.Sprintf("exec %s --save '' --port 0 --tls-port %s --tls-cert-file /tmp/cert.pem --tls-key-file /tmp/key.pem "+
		"--tls-ca-cert-file /tmp/cert.pem --tls-auth-clients no --protected-mode no", serverName(Image()), p)
	startScript(tb, Image(), script, []string{p}, map[string][]byte{"/tmp/cert.pem": cert, "/tmp/key.pem": key},
		wait.ForLog("Ready to accept connections"))
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(cert)
	return "127.0.0.1:" + p, &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
}

// StartImage runs a server of another image than the default and returns its address as host:port. Where the image cannot be had, it skips the
// test, or fails it if containers are required.
func StartImage(tb testing.TB, image string, args ...string) (addr string) {
	tb.Helper()
	p := port(tb)
	var script strings.Builder
	script.WriteString("exec " + serverName(image) + " --save '' --protected-mode no --port " + p)
	for _, a := range args {
		script.WriteString(" '" + a + "'")
	}
	startScript(tb, image, script.String(), []string{p}, nil, wait.ForLog("Ready to accept connections"))
	return "127.0.0.1:" + p
}

// StartSecured runs a server that speaks TLS only and knows nobody but the users of an access list, and returns its address as host:port. files
// are server.pem, server-key.pem, ca.pem and users.acl. Skips and failures are those of StartImage.
func StartSecured(tb testing.TB, image string, files map[string][]byte) (addr string) {
	tb.Helper()
	p := port(tb)
	script := "exec " + serverName(image) + " --save '' --port 0 --tls-port " + p + " --tls-cert-file /tmp/server.pem --tls-key-file " +
		"/tmp/server-key.pem --tls-ca-cert-file /tmp/ca.pem --tls-auth-clients no --aclfile /tmp/users.acl"
	copies := map[string][]byte{}
	for name, text := range files {
		copies["/tmp/"+name] = text
	}
	startScript(tb, image, script, []string{p}, copies, wait.ForLog("Ready to accept connections"))
	return "127.0.0.1:" + p
}

func port(tb testing.TB) string {
	tb.Helper()
	Need(tb)
	p, err := freePort()
	if err != nil {
		tb.Fatalf("testredis: %v", err)
	}
	return p
}

// startScript runs a shell script in a container whose ports are this machine's.
func startScript(tb testing.TB, image, script string, ports []string, files map[string][]byte, ready wait.Strategy) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	bound := make(network.PortMap)
	var exposed []string
	for _, p := range ports {
		exposed = append(exposed, p+"/tcp")
		bound[network.MustParsePort(p+"/tcp")] = []network.PortBinding{{HostPort: p}}
	}
	var copies []testcontainers.ContainerFile
	for path, text := range files {
		copies = append(copies, testcontainers.ContainerFile{Reader: bytes.NewReader(text), ContainerFilePath: path, FileMode: 0o644})
	}
	ctr, err := testcontainers.Run(ctx, image,
		testcontainers.WithEntrypoint("sh", "-c", script),
		testcontainers.WithExposedPorts(exposed...),
		testcontainers.WithFiles(copies...),
		testcontainers.WithHostConfigModifier(func(h *container.HostConfig) { h.PortBindings = bound }),
		testcontainers.WithWaitStrategy(ready),
		testcontainers.WithLogger(quiet{}))
	testcontainers.CleanupContainer(tb, ctr, testcontainers.StopTimeout(0)) // the data is gone anyway, and a shell does not pass SIGTERM on
	switch {
	case err == nil:
	case image != DefaultImage && ctr == nil && !Required():
		tb.Skipf("testredis: no image %s: %v", image, err)
	default:
		tb.Fatalf("testredis: %s: %v", image, err)
	}
}

// certificate makes a certificate for this machine that signs itself.
func certificate(tb testing.TB) (cert, key []byte) {
	tb.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "testredis"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		tb.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		tb.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}
