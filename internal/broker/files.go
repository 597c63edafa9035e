package broker

// fewFiles: below it, a node of many replicas or clients may run out.
const fewFiles = 4096

// maxConns is how many Kafka connections are taken at a time. A raftlog that cannot
// open its next file stops the node, so clients get no more than a share of the files.
func (s *session) maxConns() int {
	files := openFiles()
	n := s.cfg.Kafka.MaxConnections
	if n == 0 {
		n = files * 3 / 4
	}
	if files > 0 && (files < fewFiles || n > files*3/4) {
		s.log.Warn("the limit of open files is low (ulimit -n)", "files", files, "connections", n)
	}
	return n
}
