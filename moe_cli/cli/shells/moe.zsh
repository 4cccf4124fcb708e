#compdef moe moe-cli
# Completion of `moe` in zsh: as a file _moe in fpath, or evaluated. Python has chosen the words: -U.
_moe() {
    local line
    local -a complete partial
    while IFS= read -r line; do
        if [[ $line == partial$'\t'* ]]; then
            partial+=("${line#*$'\t'}")
        else
            complete+=("${line#*$'\t'}")
        fi
    done < <(_MOE_COMPLETE=zsh "${(Q)words[1]}" "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2> /dev/null)
    _describe -t words word complete -U
    _describe -t words word partial -U -S ''
}
if [[ $funcstack[1] == _moe ]]; then
    _moe "$@"
else
    compdef _moe moe moe-cli
fi
