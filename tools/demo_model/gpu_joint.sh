#!/usr/bin/env bash
set -uo pipefail
mkdir -p /opt/w /opt/data /opt/src
cp .carry/mlx.1 .carry/data.tar.xz /opt/c/
cat /opt/c/mlx.[01] | tar xf - -C /opt/w && python3 -m pip install -q --no-index --no-deps --no-compile /opt/w/*.whl 2>&1 | tail -2
tar xJf /opt/c/data.tar.xz -C /opt/data
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
timeout 540 python3 -m mtpd_mlx.cli train -c tools/demo_model/joint.yaml --tokenizer /opt/data/tokenizer --data /opt/data --out /opt/joint --iters 3800 > /opt/joint.log 2>&1 < /dev/null
tr '\r' '\n' < /opt/joint.log | grep -v "^ *[0-9]*%" > $OUT/joint.txt
tr '\r' '\n' < /opt/joint.log | tail -3
split -b 15000000 -d /opt/joint/base/model.safetensors $OUT/base.safetensors.
cp /opt/joint/heads.safetensors $OUT/
tar cf $OUT/meta.tar -C /opt/joint mtp_config.json train_log.jsonl train_options.json base/config.json base/tokenizer.json base/tokenizer_config.json
du -sh ~/.cache/mlx /tmp/mlx 2>/dev/null; find / -name "*.ptx" -o -name "*.cubin" 2>/dev/null | grep -i mlx | head -2
d=$(find /tmp /root -type d -path "*mlx*" -name "ptx*" 2>/dev/null | head -1); [ -n "$d" ] && tar cJf $OUT/ptx.tar.xz -C "$d" . && echo "$d" > $OUT/ptx_dir
ls -la $OUT; tail -5 $OUT/joint.txt
